"""Language-model teachers that are made of others: a mixture of probabilities, and a route by kind of problem."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from opdbench.errors import UserError
from opdbench.lm.policy import Decoding, LanguagePolicy, Speaker
from opdbench.references import Mix, Route
from opdbench.task import Example, LanguageTask
from opdbench.teachers import Mixture, Several


class SeveralLanguage(Several, LanguagePolicy):
    """Teachers of one tokenizer, which the world compares with the student's.

    Raises:
        UserError: an id means another token in one of the parts.
    """

    def __init__(self, parts: Sequence[LanguagePolicy], input_bt: Tensor) -> None:
        for number, part in enumerate(parts):
            if difference := parts[0].tokenizer.difference(part.tokenizer):
                raise UserError(f"the tokenizers of teachers 1 and {number + 1} do not match: {difference}",
                                "name teachers of one family")
        super().__init__(parts, input_bt)
        self.tokenizer = parts[0].tokenizer
        self.context_length = min(part.context_length for part in parts)
        self.limit_vocabulary(self.n_actions)

    def members(self) -> list[LanguagePolicy]:
        return [member for part in self.parts if isinstance(part, LanguagePolicy) for member in part.members()]

    def limit_vocabulary(self, n_tokens: int) -> None:
        super().limit_vocabulary(n_tokens)
        for part in self.members():
            part.limit_vocabulary(n_tokens)

    def describe(self) -> str:
        return "; ".join(member.describe() for member in self.members())


class LanguageMixture(Mixture, SeveralLanguage):
    """See `opdbench.teachers.Mixture`."""

    def start(self, prompts: Sequence[Sequence[int]], capacity: int) -> Decoding:
        return _MixedDecoding(self, [part.start(prompts, capacity) for part in self.members()])


class LanguageRoute(SeveralLanguage):
    """Every problem has its own teacher; which one is the last column of the features.

    Args:
        parts: one teacher a value.
        share: of the training problems that each teacher has, for what a state costs on average.
    """

    def __init__(self, parts: Sequence[LanguagePolicy], input_bt: Tensor, field: str, values: Sequence[str],
                 share: Sequence[float]) -> None:
        super().__init__(parts, input_bt)
        self.field, self.routes, self.share = field, tuple(values), tuple(share)
        self.width = max(width for width, _ in self._forms)
        self.widest_dtype = functools.reduce(torch.promote_types, (dtype for _, dtype in self._forms))

    def on(self, examples: Sequence[Example]) -> Speaker:
        return _Routed(self, torch.tensor([self.route(example) for example in examples], device=self.device))

    def route(self, example: Example) -> int:
        """The number of the problem's teacher."""
        value = str(example.meta.get(self.field))
        if value not in self.routes:
            raise UserError(f"there is no teacher for {self.field} = {value}, which problem {example.id} has",
                            f"add {value}=MODEL to --teacher route:{self.field}:...")
        return self.routes.index(value)

    def features(self, input_bt: Tensor, length_b: Tensor) -> Tensor:
        raise TypeError("a route does not know whose problems these are: ask what `on(examples)` gives")

    def start(self, prompts: Sequence[Sequence[int]], capacity: int) -> Decoding:
        raise TypeError("a route does not know whose problems these are: ask what `on(examples)` gives")

    def project(self, features_nh: Tensor) -> Tensor:
        route_n = features_nh[:, -1]
        rows = [route_n == number for number in range(len(self.parts))]
        parts = [self.project_part(number, features_nh[row_n]) for number, row_n in enumerate(rows)]
        logits_na = torch.cat(parts)
        order_n = torch.cat([row_n.nonzero()[:, 0] for row_n in rows])
        return torch.empty_like(logits_na).index_copy_(0, order_n, logits_na)

    def forward_flops(self, n_states: int, context: float) -> float:
        """On average over the training problems."""
        return sum(share * part.forward_flops(n_states, context)
                   for share, part in zip(self.share, self.policies, strict=True))


def combine(named: Mix | Route, parts: list[LanguagePolicy], task: LanguageTask) -> LanguagePolicy:
    """One teacher of several."""
    token_bt = torch.zeros(1, 1, dtype=torch.int64, device=parts[0].device)
    if isinstance(named, Mix):
        return LanguageMixture(parts, token_bt, named.weights)
    problems = [str(example.meta.get(named.field)) for example in task.examples("train")]
    share = [problems.count(value) / len(problems) for value in named.values]
    return LanguageRoute(parts, token_bt, named.field, named.values, share)


class _MixedDecoding:
    """The same sequences read by every part."""

    def __init__(self, mixture: LanguageMixture, decodings: Sequence[Decoding]) -> None:
        self._mixture, self._decodings = mixture, decodings
        self.logits_ba = self._mix()

    def step(self, token_b: Tensor) -> Tensor:
        for decoding in self._decodings:
            decoding.step(token_b)
        self.logits_ba = self._mix()
        return self.logits_ba

    def keep(self, index_b: Tensor) -> None:
        for decoding in self._decodings:
            decoding.keep(index_b)
        self.logits_ba = self.logits_ba[index_b]

    def _mix(self) -> Tensor:
        return self._mixture.mix([decoding.logits_ba for decoding in self._decodings])


class _Routed:
    """A route on one batch: sequence b belongs to teacher route_b."""

    def __init__(self, route: LanguageRoute, route_b: Tensor) -> None:
        self._route, self._route_b = route, route_b

    def features(self, input_bt: Tensor, length_b: Tensor) -> Tensor:
        """[B, T, H + 1] with H the widest part's: features, zeros, and the teacher's number."""
        batch, horizon = input_bt.shape
        features_bth = torch.zeros(batch, horizon, self._route.width + 1, dtype=self._route.widest_dtype,
                                   device=input_bt.device)
        features_bth[..., -1] = self._route_b[:, None]
        for _, part, rows in self._shares():
            own_bth = part.features(input_bt[rows], length_b[rows])
            features_bth[rows, :, :own_bth.shape[-1]] = own_bth.to(features_bth.dtype)
        return features_bth

    def start(self, prompts: Sequence[Sequence[int]], capacity: int) -> Decoding:
        return _RoutedDecoding(self._route_b, {number: part.start([prompts[row] for row in rows.tolist()], capacity)
                                               for number, part, rows in self._shares()})

    def _shares(self) -> list[tuple[int, LanguagePolicy, Tensor]]:
        """Every teacher that has sequences here, by its number, and which ones."""
        parts = self._route.members()
        return [(number, parts[number], (self._route_b == number).nonzero()[:, 0])
                for number in sorted(set(self._route_b.tolist()))]


class _RoutedDecoding:
    """Every sequence read by its own teacher alone."""

    def __init__(self, route_b: Tensor, decodings: dict[int, Decoding]) -> None:
        self._route_b, self._decodings = route_b, decodings
        self.logits_ba = self._gather()

    def step(self, token_b: Tensor) -> Tensor:
        for number, decoding in self._decodings.items():
            decoding.step(token_b[self._route_b == number])
        self.logits_ba = self._gather()
        return self.logits_ba

    def keep(self, index_b: Tensor) -> None:
        place_b = torch.zeros_like(self._route_b)  # of a sequence among its teacher's
        for number in self._decodings:
            place_b[self._route_b == number] = torch.arange(int((self._route_b == number).sum()), device=place_b.device)
        place_b, self._route_b = place_b[index_b], self._route_b[index_b]
        self._decodings = {number: decoding for number, decoding in self._decodings.items()
                           if (self._route_b == number).any()}
        for number, decoding in self._decodings.items():
            decoding.keep(place_b[self._route_b == number])
        self.logits_ba = self.logits_ba[index_b]

    def _gather(self) -> Tensor:
        rows_b = torch.cat([(self._route_b == number).nonzero()[:, 0] for number in self._decodings])
        logits_ba = torch.cat([decoding.logits_ba for decoding in self._decodings.values()])
        return torch.empty_like(logits_ba).index_copy_(0, rows_b, logits_ba)
