"""Try models on a page in the browser: drop an image or take one with the camera, and see its caption.

python demo.py                                        the newest run, or the model of the project
python demo.py --checkpoint a.pth b.pth               two models side by side
python demo.py --host 0.0.0.0 --port 8000             for everybody in the network

Only this computer can open the page unless --host says otherwise. Images are neither kept nor passed on.
"""

from startup import importing, run_script

import argparse
import sys
from pathlib import Path

from config_reading import argument_parser, repeat_checkpoint


def main() -> None:
    args = _parse_arguments()
    with importing():
        from jobs.demo import show_demo
    show_demo(args)


def _parse_arguments() -> argparse.Namespace:
    parser = argument_parser(__doc__, ("search",))
    parser.add_argument(
        "--checkpoint", action="append", type=Path, metavar="FILE",
        help="best.pth or folder of a run (default: the newest one, or else pretrained/flickr8k.pth); "
        "several: one column for each",
    )  # fmt: skip
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="NAME",
        help="address to listen on (default: 127.0.0.1, this computer alone; 0.0.0.0: every network)",
    )  # fmt: skip
    parser.add_argument(
        "--port", type=int, default=7860, metavar="N", help="port to listen on (default: 7860)"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="override the configuration of the models"
    )
    args = parser.parse_intermixed_args(repeat_checkpoint(sys.argv[1:]))
    if not 1 <= args.port <= 65535:
        parser.error("--port must be from 1 to 65535")
    return args


if __name__ == "__main__":
    run_script(main)
