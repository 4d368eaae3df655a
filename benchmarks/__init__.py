"""Heavy measurements: `make bench` prints their tables; they assert nothing about seconds."""
