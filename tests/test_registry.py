"""Methods and tasks are found by entry point or file, described without being imported, and refused clearly."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from opdbench import registry
from opdbench.errors import UsageError, UserError

FAMILIES = {"atari-memory": "atari-memory:pong", "minatar": "minatar:breakout", "several": "several:cartpole+acrobot",
            "atari-v5-sticky": "atari-v5-sticky:pong",
            "atari-v4-nosticky": "atari-v4-nosticky:pong"}  # not every word is the name of a game

METHOD = '''
from typing import ClassVar
from opdbench.distiller import Distiller, Needs

class {cls}(Distiller):
    """A claim about {name}.

    More text.
    """
    name: ClassVar[str] = "{name}"
    paper = ("Somebody, "
             "somewhere, 2030")
    needs = Needs.SAMPLED
    domains = frozenset({{"rl"}})

    def collect(self, ctx): ...
    def loss(self, rows, ctx): ...
'''


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Puts a distribution on the path as an installer would: its modules and its dist-info."""

    def _install(distribution: str, modules: dict[str, str], points: str, version: str = "1.5") -> Path:
        site = tmp_path / distribution
        info = site / f"{distribution}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(textwrap.dedent(points))
        for path, source in modules.items():
            file = site / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(source)
        monkeypatch.syspath_prepend(str(site))
        return site

    return _install


def method_source(name: str = "zap", cls: str = "Zap") -> str:
    return METHOD.format(name=name, cls=cls)


# --------------------------------------------------------------------------------------------------- what is installed


def example(description: registry.Description) -> str:
    """Something that a user could type."""
    return FAMILIES.get(description.name, description.id)


@pytest.mark.parametrize("kind", registry.KINDS)
def test_everything_that_opdbench_registers_can_be_described_and_loaded(kind: registry.Kind) -> None:
    found = [entry for entry in registry.descriptions(kind) if entry.package.startswith("opdbench ")]
    assert len(found) >= 5
    for description in found:
        assert description.problem is None
        assert description.summary and description.paper and description.domains
        loaded = registry.load(kind, example(description))
        assert loaded.name.partition(":")[0] == description.name
        assert getattr(loaded, "version", 1) == description.version


def test_reading_source_agrees_with_importing() -> None:
    for description in registry.descriptions("method"):
        method = registry.load("method", description.name)
        assert description.needs == str(method.needs)
        assert set(description.domains) == set(method.domains)
        assert description.paper == method.paper
    for description in registry.descriptions("task"):
        task = registry.load("task", example(description))
        assert (description.summary, description.paper) == (task.summary.rstrip("."), task.source)
        assert description.domains == (task.domain,)


def test_describing_imports_neither_torch_nor_the_methods() -> None:
    script = """
        import sys
        from opdbench import registry
        assert len(registry.descriptions("method")) >= 5 and len(registry.descriptions("task")) >= 5
        heavy = {"torch", "transformers", "pydantic", "gymnasium", "opdbench.baselines", "opdbench.distiller"}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown method 'gdk'") as error:
        registry.load("method", "gdk")
    assert "'gkd'" in error.value.fix and "opdbench list methods" in error.value.fix


def test_a_wrong_version_says_which_there_is() -> None:
    with pytest.raises(UsageError, match=r"chain-sum@9 does not exist here: the installed version is chain-sum@1"):
        registry.load("task", "chain-sum@9")
    with pytest.raises(UsageError, match="chain-sum@1"):
        registry.describe("task", "chain-sum@2")
    with pytest.raises(UsageError, match="NAME@VERSION"):
        registry.load("task", "chain-sum@one")
    assert registry.load("task", "chain-sum@1") is registry.load("task", "chain-sum")


# ---------------------------------------------------------------------------------------------------- other packages


def test_a_third_party_package_is_found_by_its_entry_point(install) -> None:
    install("zapper", {"zapper/__init__.py": "raise RuntimeError('describing must not import me')",
                       "zapper/zap.py": method_source()}, "[opdbench.methods]\nzap = zapper.zap:Zap\n")
    description = registry.describe("method", "zap")
    assert description == registry.Description(
        "method", "zap", 1, "A claim about zap", ("rl",), "sampled", "Somebody, somewhere, 2030", "zapper 1.5",
        description.path)
    assert description.path is not None and description.path.name == "zap.py"
    with pytest.raises(UserError, match=r"'zap' of zapper 1\.5 cannot be imported: RuntimeError: describing must not"):
        registry.load("method", "zap")


def test_attributes_may_come_from_a_base_in_another_module(install) -> None:
    modules = {
        "family/__init__.py": "from .variants import Loud\n",
        "family/base.py": method_source("base", "Base") + "\nVERSION = 7\n",
        "family/variants.py": ('from . import base\nLEVEL = 7\n'
                               'class Loud(base.Base):\n    name = "loud"\n    version = LEVEL\n'),
    }
    install("family", modules, "[opdbench.methods]\nloud = family:Loud\n")
    description = registry.describe("method", "loud")
    assert (description.version, description.needs, description.domains) == (7, "sampled", ("rl",))
    assert registry.load("method", "loud@7").name == "loud"


def test_packages_inside_namespace_packages_are_found(install) -> None:
    install("acme", {"acme/research/zap.py": method_source()}, "[opdbench.methods]\nzap = acme.research.zap:Zap\n")
    assert registry.describe("method", "zap").summary == "A claim about zap"
    assert registry.load("method", "zap").__module__ == "acme.research.zap"


@pytest.mark.parametrize(("source", "point", "reason"), [
    ("def broken(:\n", "bad.zap:Zap", "syntax error in .*zap.py, line 1"),
    ("x = 1\n", "bad.zap:Zap", "no class 'Zap'"),
    (method_source(), "bad.nowhere:Zap", "no module 'bad.nowhere'"),
    ("\0", "bad.zap:Zap", "zap.py"),
    ("from ...far import Zap\n", "bad.zap:Zap", "line 1: attempted relative import"),
    ("from bad.zap import Zap\n", "bad.zap:Zap", "no class 'Zap'"),
    ("x = " + "-" * 100_000 + "1\n", "bad.zap:Zap", "zap.py"),
])
def test_a_broken_package_is_listed_with_its_reason_and_hides_no_other(install, source, point, reason) -> None:
    install("bad", {"bad/__init__.py": "", "bad/zap.py": source}, f"[opdbench.methods]\nzap = {point}\n")
    found = {description.name: description for description in registry.descriptions("method")}
    assert found["gkd"].problem is None
    assert found["zap"].package == "bad 1.5"
    with pytest.raises(UserError, match=rf"'zap' of bad 1\.5 cannot be used: .*{reason}"):
        registry.describe("method", "zap")
    with pytest.raises(UserError, match=r"bad 1\.5"):
        registry.load("method", "zap")
    assert registry.load("method", "gkd").name == "gkd"


def test_a_missing_dependency_is_named_with_what_to_install(install) -> None:
    install("needy", {"needy.py": "import no_such_thing\n" + method_source()}, "[opdbench.methods]\nzap = needy:Zap\n")
    with pytest.raises(UserError, match="No module named 'no_such_thing'") as error:
        registry.load("method", "zap")
    assert "no_such_thing" in error.value.fix


def test_two_packages_with_one_name_are_refused_naming_both(install) -> None:
    for package in ("first", "second"):
        install(package, {f"{package}.py": method_source()}, f"[opdbench.methods]\nzap = {package}:Zap\n")
    both = r"'zap' is registered 2 times: by (first 1\.5 and by second|second 1\.5 and by first)"
    with pytest.raises(UserError, match=both):
        registry.load("method", "zap")
    with pytest.raises(UserError, match=both):
        registry.describe("method", "zap")
    assert [d.name for d in registry.descriptions("method")].count("zap") == 1


def test_a_class_that_calls_itself_otherwise_or_is_no_method_is_refused(install) -> None:
    install("other", {"other.py": method_source("zip") + "\nclass Plain:\n    name = 'plain'\n"},
            "[opdbench.methods]\nzap = other:Zap\nplain = other:Plain\n")
    with pytest.raises(UserError, match="registers method 'zap', but the class calls itself 'zip'"):
        registry.load("method", "zap")
    with pytest.raises(UserError, match=r"not a subclass of opdbench\.distiller\.Distiller"):
        registry.load("method", "plain")


# ----------------------------------------------------------------------------------------------------- plugin files


def test_the_methods_and_tasks_of_a_plugin_file_are_used_like_installed_ones(tmp_path: Path) -> None:
    file = tmp_path / "my methods.py"
    file.write_text(method_source() + textwrap.dedent('''
        from opdbench.tasks import control
        from opdbench.baselines.gkd import GKD as Base

        class Heavier(Base):
            name = "heavier"

        class Helper:
            name = "not a method"

        class LongPole(control.CartPole):
            name = "long-pole"
            version = 3
        '''))
    assert set(registry.defined_in(file)) == {("method", "zap"), ("method", "heavier"), ("task", "long-pole")}
    assert {"zap", "heavier", "gkd"} <= set(registry.names("method", [file]))
    assert "zap" not in registry.names("method")
    assert registry.describe("method", "heavier", [file]).needs == "full"
    zap = registry.load("method", "zap", [file])
    assert zap is registry.load("method", "zap", [str(file)])
    assert registry.load("task", "long-pole@3", [file]).env_id == "CartPole-v1"


def test_a_plugin_that_takes_an_installed_name_is_refused_naming_both(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(method_source("gkd", "Mine"))
    with pytest.raises(UserError, match=r"'gkd' is registered 2 times: by opdbench .* and by .*mine\.py"):
        registry.load("method", "gkd", [file])


@pytest.mark.parametrize(("name", "content", "reason"), [
    ("bad.py", "def broken(:\n", "syntax error in .*bad.py, line 1"),
    ("bad.txt", "x = 1\n", "not a Python file that exists"),
    ("latin.py", b"\xff\xfe", "latin.py cannot be read"),
])
def test_a_plugin_file_that_cannot_be_read_says_why(
        tmp_path: Path, name: str, content: str | bytes, reason: str) -> None:
    file = tmp_path / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError, match=reason):
        registry.names("method", [file])
    with pytest.raises(UserError, match="not a Python file that exists"):
        registry.names("method", [tmp_path / "absent.py"])


def test_a_plugin_file_whose_import_fails_names_file_and_cause_and_can_be_mended(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(method_source() + "\n1 / 0\n")
    assert registry.describe("method", "zap", [file]).problem is None  # nobody looked by running it
    with pytest.raises(UserError, match=r"'zap' of .*mine\.py cannot be imported: ZeroDivisionError: division by zero"):
        registry.load("method", "zap", [file])
    file.write_text(method_source())
    assert registry.load("method", "zap", [file]).name == "zap"
