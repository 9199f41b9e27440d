"""Write a trained model for other programs: as ONNX, as torch.export programs, or as a web page.

python export.py                            ONNX, in outputs/onnx; caption_onnx.py captions with it
python export.py --format onnx --int8       the same, smaller
python export.py --format torch             programs that torch.export.load reads
python export.py --format web               a page that captions images in the browser
"""

from startup import importing, run_script

import argparse
from pathlib import Path

from config_reading import argument_parser


def main() -> None:
    args = _parse_arguments()
    with importing():
        from jobs.export import export_files
    export_files(args)


def _parse_arguments() -> argparse.Namespace:
    parser = argument_parser(__doc__, ("search",))
    parser.add_argument(
        "--format", choices=("onnx", "torch", "web"), default="onnx", help="what to write (default: onnx)"
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="best.pth or folder of a run (default: the newest one)",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="folder to write to (default: outputs/FORMAT)"
    )
    parser.add_argument(
        "--int8", action="store_true", help="8 bits for the weights of matrices: smaller, and nearly as good"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="override the checkpoint's configuration"
    )
    args = parser.parse_intermixed_args()
    if args.int8 and args.format == "torch":
        parser.error("--int8 is for --format onnx and --format web")
    args.output = args.output or Path("outputs", args.format)
    return args


if __name__ == "__main__":
    run_script(main)
