"""From records to what people read. Nothing here imports torch."""
