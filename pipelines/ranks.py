"""Run a command on several GPUs or machines: torchrun for the commands of this project.

    python pipelines/ranks.py --standalone --nproc_per_node=4 brats train --data DIR --output run

A command is named by its words, or by its script. All options of torchrun go before it. Signals
that ask for the end, SIGUSR1 of SLURM among them, reach the ranks, which save and leave within
--shutdown-timeout seconds; how it ended is one line, and the exit code is that of the first rank
that failed. With --max-restarts, a group that lost a rank goes on from its last checkpoint.

Several machines:
  --nnodes N               How many machines take part; each runs the same line.
  --nproc_per_node N       Ranks of each machine, one for each GPU.
  --rdzv_backend c10d      How they find each other.
  --rdzv_endpoint HOST     One of the machines, with a port.
  --rdzv_id NAME           The same on all machines, and new for each start.

One machine:
  --standalone             No other machine takes part.

Ends:
  --max-restarts N         How often a group that lost a rank starts again (default: 0).
  --shutdown-timeout N     Seconds that ranks get to save (default: 240).
  --signals-to-handle A,B  Signals that end the ranks (default: SIGTERM, SIGINT, SIGHUP, SIGQUIT,
                           SIGUSR1).

All others: torchrun --help.
"""

from collections.abc import Sequence

from cggm.commands import find_scripts, split_words, spoken
from cggm.runs import run, start_ranks


def main(argv: Sequence[str]) -> int:
    """Start the ranks of a command."""
    if not argv or {*argv[:1]} & {"-h", "--help"}:
        print(spoken(__doc__ or ""))
        return 0
    return start_ranks(argv, _script)


def _script(words: Sequence[str]) -> list[str]:
    """The script of a command, and its arguments."""
    scripts = find_scripts()
    command, arguments = split_words(words, scripts)
    return [str(scripts[command]), *arguments] if command else [*words]


if __name__ == "__main__":
    raise SystemExit(run(main))
