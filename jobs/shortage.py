"""What the system has run out of, where an error says so, in one sentence."""

import errno

from kernels.errors import is_out_of_memory, is_out_of_threads

KEPT = "what is finished is kept, so make room for some and give the same command again"


def shortage(error: BaseException) -> str | None:
    """What the system has run out of and what to do; None where an error is another."""
    if is_out_of_threads(error):
        return f"the system gives no more threads (ulimit -u); {KEPT}"
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return f"the system opens no more files (ulimit -n); {KEPT}"
    if is_out_of_memory(error):
        return "memory ran out; give a smaller --shard-size, --d-model or --vocab-size, or see plan"
    return None
