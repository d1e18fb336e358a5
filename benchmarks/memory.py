"""Peak GPU memory and tokens/s by how the head is computed: all logits at once, or in chunks of some size.

    python benchmarks/memory.py [--models gpt2] [--chunks 0.25 0.5 1 2] [--smoke]

The work is that of step.py; a chunk is so many GiB of logits.
"""

import argparse

import step as steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["gpt2"], choices=steps.MODELS)
    parser.add_argument("--chunks", nargs="+", type=float, default=[0.25, 0.5, 1, 2], help="GiB")
    parser.add_argument("--smoke", action="store_true", help="a toy size, not compiled")
    flags = parser.parse_args()
    steps.heading()
    print("model  head                     micro   tokens/s   speed   peak GB   memory")
    for name in flags.models:
        whole = None
        for variant in ("plain head", *(f"chunks of {size:g} GiB" for size in flags.chunks)):
            found = steps.run(steps.case_of(name, flags.smoke) | {"variant": variant})
            if found is None:
                print(f"{name:6} {variant:24} failed", flush=True)
                continue
            whole = whole or found
            print(
                f"{name:6} {variant:24} {found['micro']:5} {found['speed']:10,.0f} "
                f"{found['speed'] / whole['speed']:7.3f} {found['peak_gb']:9.1f} "
                f"{found['peak_gb'] / (whole['peak_gb'] or 1):8.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
