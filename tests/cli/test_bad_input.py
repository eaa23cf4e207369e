"""What users get wrong, and what they are told: one sentence that names what was got and the way out, status 2."""

import shutil
from pathlib import Path

import pytest
import yaml

import tiny
from command import dashed, poa, tiny_file
from refusals import TRAIN, picture, refused, truncate

KNN = "evaluate knn run --train digits/train --test digits/test"
LINEAR, FEW, RETRIEVAL = (KNN.replace("knn", name) for name in ("linear", "few-shot", "retrieval"))
CLUSTER = "evaluate cluster run --test digits/test"
REFUSED = {
    # words
    "command": ("pretain", 'Unknown command "pretain"', 'Did you mean "pretrain"?'),
    "flag": ("pretrain --epoch 3", "Unknown option: --epoch", "Did you mean --epochs?"),
    "nested flag": ("pretrain --model.dept-max 3", "--model.dept-max", "Did you mean --model.depth-max?"),
    "flag of another section": ("pretrain --optimizer.lr 3", "Unknown option: --optimizer.lr", "Did you mean --lr?"),
    "flag of another package": ("pretrain --learning-rate=3", "--learning-rate", "Did you mean --lr?"),
    "setting of another section": ("pretrain --config lr.yaml", "'optimizer.lr'", "Did you mean 'lr'?"),
    "no folder for a planned run": ("pretrain --data digits", "--out FOLDER is required"),
    "word without a flag": ("pretrain images", "Unexpected argument 'images'", "--name VALUE"),
    "no folder named": ("evaluate knn", "MODEL requires an argument", "--help"),
    "nothing to list": ("sizes", "Give either", "the folder of a run", "--model NAME"),
    "no images": ("doctor", "No images are named", "give a folder"),
    "no image after a flag": (
        "evaluate knn run --test one --train",
        "--train requires at least 1 element. Got 0",
        "--help",
    ),
    "no size named": ("extract run", "--size requires an argument", "--help"),
    **{
        f"no value of {words}": (words, f"{words.split()[-1]} requires at least 1 element. Got 0", "--help")
        for words in (
            "extract run --size",
            "export model --size",
            "export run --size 32x2 --format",
            "embed run --data digits/test --out new --sizes",
            "evaluate knn run --train digits/train --test digits/test --sizes",
            "evaluate knn run --train digits/train --test digits/test --k",
            "evaluate robustness run --train digits/train --test digits/test --kinds",
            "report run --kinds",
            "pretrain --config tiny.yaml --out new --log",
            "pretrain --config tiny.yaml --out new --model.widths",
            "sizes --model.widths",
            "compare --config tiny.yaml --train digits/train --test digits/test --out new --num-sizes --seeds",
        )
    },
    **{
        f"side 0 of {words.split(maxsplit=1)[0]}": (f"{words} --image-size 0", "--image-size must be at least 1, got 0")
        for words in (
            "export run --size 32x2",
            "embed run --sizes 32x2 --data digits/test --out new",
            "measure run",
            "extract --from model --size 32x2",
            "segment run --train images --masks images",
        )
    },
    "workers": ("evaluate quality run --sizes 32x2 --data images --workers -1", "--workers must be at least 0, got -1"),
    "seed of pictures": ("pictures run --images images --out new --seed -1", "--seed must be from 0 to 2^64 - 1, got"),
    "seed": (f"{TRAIN} --seed {2**64}", "seed cannot be", "less than 18446744073709551616"),
    "tolerance": ("export run --size 32x2 --out new --tolerance -1", "--tolerance must be 0 or more, got -1"),
    "loss": ("export run --size 32x2 --out new --max-loss nan", "--max-loss must be 0 or more, got nan"),
    "too few numbers": (
        "pretrain --data digits --recipe demo --out new --views.mean 1 2",
        "--views.mean has 2 values",
        "images have 3 channels",
    ),
    # settings, one by one
    "type": ("pretrain --epochs many", "epochs cannot be 'many'", "valid integer"),
    "range": ("pretrain --epochs 0", "epochs cannot be '0'", "greater than or equal to 1"),
    "share": ("pretrain --views.flip 1.5", "views.flip cannot be '1.5'", "less than or equal to 1"),
    "choice": ("pretrain --precision fp23", "precision cannot be 'fp23'", "Did you mean 'fp32'?"),
    "temperature 0": (
        "pretrain --losses.teacher-temperature 0 0.1",
        "--losses.teacher-temperature cannot be '0'",
        "than 0",
    ),
    "recipe": ("pretrain --recipe dem", "no recipe 'dem'", "Did you mean 'demo'?"),
    "no settings file": ("pretrain --config none.yaml", "none.yaml cannot be read: No such file", "Check --config"),
    "folder of settings": ("pretrain --config empty", "empty cannot be read: Is a directory", "Check --config"),
    "no YAML": ("pretrain --config broken.yaml", "broken.yaml is not valid YAML", "in line 2, column 3"),
    "YAML of bytes": ("pretrain --config used/notes.bin", "notes.bin is not valid YAML"),
    "YAML list": ("pretrain --config list.yaml", "got list", "`epochs: 100`"),
    "YAML key": ("pretrain --config key.yaml", "Unknown setting 'epoch'", "Did you mean 'epochs'?"),
    "nested YAML key": ("pretrain --config nested.yaml", "'views.globalsize'", "Did you mean 'views.global_size'?"),
    "YAML section": ("pretrain --config section.yaml", "model must be named settings, got 3"),
    "no prototypes": ("pretrain --config none_left.yaml", "heads.prototypes cannot be []", "at least 1 item"),
    # settings that do not fit one another
    "width": (f"{TRAIN} --model.width-max 80", "multiples of the head dimension 32, got 80", "--model.head-dim"),
    "widths": (f"{TRAIN} --model.width-min 96", "width 96 is above the largest, 64", "--model.width-min to at most 64"),
    "depths": (f"{TRAIN} --model.depth-min 4", "depth 4 is above the largest, 3", "--model.depth-min to at most 3"),
    "one size": (f"{TRAIN} --model.width-min 64 --model.depth-min 3", "only 64x3", "Lower", "--model.depth-min"),
    "image size": (f"{TRAIN} --views.global-size 20", "image size 20", "Set --views.global-size to 16 or 24"),
    "local size": (f"{TRAIN} --views.local-size 9", "image size 9", "Set --views.local-size to 8 or 16"),
    "small local size": (f"{TRAIN} --views.local-size 3", "image size 3", "Set --views.local-size to 8,"),
    "mask grid": (f"{TRAIN} --model.patch-size 16 --views.local-size 16", "got a 1x1 grid", "Use larger crops"),
    "blur kernel": (
        f"{TRAIN} --views.blur-kernel 17",
        "17 pixels is larger than a crop of 8",
        "Lower --views.blur-kernel",
    ),
    "even blur kernel": (f"{TRAIN} --views.blur-kernel 4", "kernel cannot be", "it should be odd"),
    "scale": (f"{TRAIN} --views.global-scale 0.9 0.5", "scale cannot be", "it should be the smallest value, then the"),
    "mask ratio": (f"{TRAIN} --views.mask-ratio 0.9 0.5", "mask ratio must be two ascending", "got (0.9, 0.5)"),
    "batch": (
        f"{TRAIN} --accumulate 3",
        "16 images cannot be divided evenly over 1 process with 3 micro-batches",
        "multiple of 3, such as 15 or 18",
    ),
    "precision": (f"{TRAIN} --precision fp16", "fp16 needs a GPU", "Use bf16 or fp32"),
    "machines": (f"{TRAIN} --num-nodes 2", "2 machines", "torchrun --nnodes 2 --nproc-per-node 1"),
    # networks
    "BatchNorm": (
        f"{TRAIN} --model resnet50",
        "resnet50 cannot be cut into sizes: it has no group norm",
        "use resnet50_gn",
    ),
    "no family": (f"{TRAIN} --model efficientnet_b0", "family EfficientNet, which cannot be cut", "CONTRIBUTING.md"),
    "mistyped network": (
        f"{TRAIN} --model swin_tiny_patch4",
        "no such family",
        "Did you mean 'swin_tiny_patch4_window7_224'?",
    ),
    "another network": (f"{TRAIN} --model swin --views.global-size 15", "image size 15", "to 12 or 16"),
    # images
    "no data": ("pretrain --out new", "--data is required: a folder of images"),
    "missing path": (f"{TRAIN} --data imags", "does not exist", "Did you mean 'images'?"),
    "empty folder": (f"{TRAIN} --data empty", "no file in", "give a folder"),
    "text named .jpg": (f"{TRAIN} --data texts --limit none", "20 of 20 images", "not an image", "another --data"),
    "truncated images": (f"{TRAIN} --data truncated --limit none", "20 of 20 images", "truncated", "another --data"),
    "few images": (
        f"{TRAIN} --data one --limit none",
        "batch-size 16 is larger",
        "--batch",
    ),
    "limit": (f"{TRAIN} --data one", "--limit 64 is more than the number of images in", "one, 1:", "lower it"),
    "monitor data": (f"{TRAIN} --monitor.data nothing", "nothing does not exist"),
    "monitor labels": (f"{TRAIN} --monitor.data images/all", "have no labels", "into a folder with its name"),
    # folders
    "no out": ("pretrain --config tiny.yaml", "is required", "--out FOLDER"),
    "run in use": ("pretrain --config tiny.yaml --out run", "run already holds a run", "--resume", "another --out"),
    "run not saved": (
        "pretrain --config tiny.yaml --out unsaved",
        "without a checkpoint",
        "--resume",
        "delete the folder",
    ),
    "folder in use": ("pretrain --config tiny.yaml --out used", "used already exists", "Choose another --out"),
    "out is a file": ("pretrain --config tiny.yaml --out tiny.yaml", "tiny.yaml already exists", "another --out"),
    "out in a file": ("pretrain --config tiny.yaml --out tiny.yaml/run", "Not a directory", "another --out"),
    "out read-only": ("pretrain --config tiny.yaml --out /proc/run", "cannot be written to /proc/run", "another --out"),
    # going on
    "dry run in use": ("pretrain --config tiny.yaml --out run --dry-run", "run already holds a run", "another --out"),
    "dry run of nothing": ("pretrain --out new --resume --dry-run", "new holds no run to resume", "Leave out --resume"),
    "nothing to resume": ("pretrain --out new --resume", "new holds no run to resume", "Leave out --resume"),
    "resume for hours": ("pretrain --out run --resume --hours 1", "has its length already", "Leave out --hours"),
    "no hours": ("plan --data one --hours 0", "--hours must be above 0, got 0", "such as 0.5"),
    "plan in use": ("plan --data images --out run", "run already holds a run", "another --out"),
    "plan of nothing": ("plan --hours 1", "--data is required"),
    "resume nowhere": ("pretrain --resume", "--out FOLDER"),
    "other settings": ("pretrain --out run --resume --lr 0.1", "lr (None in the run, 0.1 now)", "only --out and --res"),
    "more epochs": ("pretrain --out run --resume --epochs 5", "epochs (2 in the run, 5 now)", "--out run-longer --ep"),
    "no step": ("sizes run --checkpoint last", "by the word best, got 'last'"),
    "patience without labels": (f"{TRAIN} --monitor.patience 3", "needs k-NN scores", "Add --monitor.data LABELLED"),
    "cool-down of a cosine": (f"{TRAIN} --optimizer.cooldown-epochs 1", "no effect on a cosine", "schedule constant"),
    "other images": (
        "pretrain --out run --resume --data digits/test",
        "(64 images) are not those that run was trained on",
        "another",
    ),
    "damaged": ("pretrain --out damaged --resume", "step-00000008.pt is damaged", "one before it is step-00000004.pt"),
    "all damaged": ("pretrain --out lost --resume", "step-00000008.pt is damaged", "start the run again in another"),
    # runs
    "no run": ("sizes images", "images is neither the folder of a run", "Give the folder of a run"),
    "no checkpoint": ("extract unsaved --size 32x2", "has no checkpoint yet", "--resume"),
    "damaged model": ("extract damaged --size 32x2", "step-00000008.pt is damaged", "delete"),
    "size": ("extract run --size 32x9", "no size '32x9'", "Did you mean '32x3'?"),
    "no size at all": ("extract run --size small", "'small' is not a size", "such as 384x12"),
    "several sizes": ("extract run --size 32x2 32x3 --out new", "--out takes one size, got 2", "Leave it out"),
    "model in use": ("extract run --size 32x2 --out used", "used already exists", "Choose another --out"),
    "model in a file": ("extract run --size 32x2 --out tiny.yaml/x", "Not a directory", "Choose another folder"),
    "table": ("sizes run --out sizes.xlsx", "got sizes.xlsx", "Choose from .csv, .json"),
    "table read-only": ("sizes run --out /proc/sizes.csv", "/proc", "No such file", "Fix this"),
    # scores
    "branch": (f"{KNN} --branch teachers", '"teachers"', 'Did you mean "teacher"?'),
    "no labels": ("evaluate knn run --train images/all --test digits/test", "have no labels", "CSV list"),
    "unknown classes": ("evaluate knn run --train digits/train --test images", "classes that the training images lack"),
    "same images": (
        "evaluate knn run --train digits/test --test digits/test",
        "(digits/test) are also among the training",
        "Give other images",
    ),
    "k": (f"{KNN} --k 5 2000 --limit 100", "k=2000 is not possible", "here 100"),
    "k 0": (f"{KNN} --k 0", "k=0 is not possible", "from 1"),
    "size to score": (f"{KNN} --sizes 32x2 99x9", "no size '99x9'", "Did you mean"),
    "other scores": (f"{KNN} --name other --limit 100", "train (50 images", "Choose another --name", "--overwrite"),
    "damaged scores": ("sizes broken", "knn.json is damaged or not a file of scores", "Delete it"),
    "name of scores": (f"{KNN} --name a/b", "without slashes, got 'a/b'"),
    "no images to learn from": ("evaluate linear run --test digits/test", "requires an argument", "--help"),
    "training images of clusters": ("evaluate cluster run --train a --test b", "Unknown option: --train"),
    "image size to score": (f"{KNN} --image-size 20", "image size 20", "Set --image-size to 16 or 24"),
    "scores in a file": (f"{KNN} --out tiny.yaml/x", "cannot be written to tiny.yaml/x", "another --out"),
    "scores limit": (f"{KNN} --limit 0", "A limit of images must be at least 1"),
    "strengths": (f"{LINEAR} --strengths 0.1 -1", "--strengths cannot be '-1'", "greater than 0"),
    "few": (FEW, "either --per-class or --share", "got None and None"),
    "few and share": (f"{FEW} --per-class 1 --share 0.1", "either", "got 1 and 0.1"),
    "too few": (f"{FEW} --per-class 6 --limit 50", "6 images per class is not possible", "Ask for 1 to 5 images"),
    "share of images": (f"{FEW} --share 2", "--share cannot be '2'", "less than or equal to 1"),
    "draws": (f"{FEW} --per-class 1 --draws 0", "--draws cannot be '0'", "greater than or equal to 1"),
    "clusters": (f"{CLUSTER} --clusters 446", "must be from 2 to 445", "got 446"),
    "seeds of clusters": (f"{CLUSTER} --seeds 0", "--seeds", "Must be >= 1"),
    "unlabelled clusters": ("evaluate cluster run --test images/all", "have no labels", "CSV list"),
    "recall": (f"{RETRIEVAL} --k 0", "Recall at 0 is not possible", "from 1"),
    "recall of few": (f"{RETRIEVAL} --k 51 --limit 50", "Recall at 51 is not possible", "here 50"),
    # what is scored
    "no source": (KNN.replace(" run", " runs/nothing"), "runs/nothing: there is no such file or folder", "of a run"),
    "mistyped timm name": (KNN.replace(" run", " resnt18"), "no such file, folder or timm model", "'resnet18'"),
    "folder of images": (KNN.replace(" run", " images"), "images is neither the folder of a run nor", "timm name"),
    "model without weights": (KNN.replace(" run", " bare"), "bare is neither", "config.json and model.safetensors"),
    "damaged weights": (KNN.replace(" run", " torn"), "torn/model.safetensors cannot be read as a file of weights"),
    "file of weights": (KNN.replace(" run", " tiny.yaml"), "tiny.yaml is a file", "Give the folder of a run"),
    "initial of a model": (KNN.replace(" run", " resnet18") + " --branch initial", "resnet18 is not the folder of a r"),
    "size of a model": (
        KNN.replace(" run", " model") + " --sizes 64x3",
        "single network and has no size '64x3'",
        "leave sizes out",
    ),
    "image size of a model": (
        KNN.replace(" run", " model") + " --image-size 20",
        "cannot process images of 20 pixels",
        "made for 16 pixels: leave out --image-size",
    ),
    "image size below 1": (
        KNN.replace(" run", " model") + " --image-size 0",
        "--image-size must be at least 1",
        "--image-size must be at least 1, got",
    ),
}
MISTAKES = {
    "swin": {
        "width": ("--model.width-max 36", "multiples of the head dimension 8, got 36", "--model.head-dim"),
        "widths": ("--model.width-min 48", "width 48 is above the largest, 32", "-min to at most 32"),
        "depths": ("--model.depth-min 9", "depth 9 is above the largest, 3", "-min to at most 3"),
        "too many depths": ("--model.depth-min 2 2", "each elastic stage, here 1, got 2"),
        "stages": ("--model.depths 2 1 3", "--model.depths takes 4 numbers", "got 3"),
        "one size": ("--model.width-min 32 --model.depth-min 3", "only 32x3", "Lower", "--model.depth-min"),
        "image size": ("--views.global-size 15", "image size 15", "Set --views.global-size to 14 or 16"),
        "local size": ("--views.local-size 9", "image size 9", "Set --views.local-size to 8 or 10"),
        "registers": ("--model.register-tokens 4", "--model.register-tokens has no effect on a Swin", "Leave"),
    },
    "resnet": {
        "width": (
            "--model.width-max 80",
            "multiples of the number of norm groups, 32, got 80",
            "--model.width",
        ),
        "depths": ("--model.depth-min 1 3", "depth 3 is above the largest, 2", "-min to at most 2"),
        "one depth": ("--model.depth-min 1", "each elastic stage, here 2, got 1"),
        "one size": ("--model.width-min 64 --model.depth-min 2 2", "only 64x2-2", "Lower"),
        "local size": ("--views.local-size 16", "16 pixels are too small", "--views.local-size to at least 17"),
        "channels": ("--model.channels 24", "must be 16, 32, 64, 128…, got 24"),
        "drop path": ("--model.drop-path 0.1", "a ResNet is trained without drop path", "Leave it out"),
        "heads": ("--model.head-dim 16", "--model.head-dim has no effect on a ResNet", "Leave it out"),
    },
    "convnext": {
        "widths": ("--model.width-min 48", "width 48 is above the largest, 32", "-min to at most 32"),
        "depths": ("--model.depth-min 4", "depth 4 is above the largest, 3", "-min to at most 3"),
        "image size": ("--views.global-size 16", "16 pixels are too", "--views.global-size to at least 32"),
        "local size": ("--views.local-size 24", "24 pixels are too", "--views.local-size to at least 32"),
        "windows": ("--model.window-size 7", "--model.window-size has no effect on a ConvNeXt", "Leave it out"),
    },
    "dinov3": {
        "width": ("--model.width-max 72", "multiples of the head dimension 16, got 72", "--model.head-dim"),
        "depths": ("--model.depth-min 4", "depth 4 is above the largest, 3", "-min to at most 3"),
        "local size": ("--views.local-size 9", "image size 9", "Set --views.local-size to 8 or 16"),
        "MLPs": ("--model.mlp-ratio 2", "--model.mlp-ratio has no effect on a DINOv3", "Leave it out"),
    },
}
"""Of each family: what is added to the settings of its tiny run, and what is told."""
REFUSED |= {
    f"{family} {name}": (f"pretrain --config {family}.yaml --out new {words}", *told)
    for family, mistakes in MISTAKES.items()
    for name, (words, *told) in mistakes.items()
}


AMONG = ("images/all, so pictures written there would be taken for images", "Choose another --out")
REFUSED |= {
    f"{words} among images": (f"{words} --out images/all/new", *AMONG)
    for words in (
        "evaluate knn run --train digits/train --test images/all",
        "evaluate quality run --data images/all",
        "evaluate robustness run --train images/all --test digits/test",
        "evaluate finetune run --train images/all --test digits/test",
        "evaluate segmentation run --train one --train-masks images/all --test one --test-masks one",
        "evaluate detection run --train-images one --train-annotations a --test-images images/all --test-annotations a",
        "pictures run --images images/all",
        "compare --config tiny.yaml --sizes 32x2 --train images/all --test digits/test",
    )
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the wrong commands name."""
    place = tmp_path_factory.mktemp("bad")
    for name, text in {
        "broken.yaml": "epochs: [3\nlr: 1}",
        "list.yaml": "- epochs",
        "key.yaml": "epoch: 3",
        "lr.yaml": "optimizer: {lr: 3}",
        "nested.yaml": "views: {globalsize: 3}",
        "section.yaml": "model: 3",
        "none_left.yaml": "heads: {prototypes: []}",
        "used/notes.txt": "mine",
    }.items():
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(text)
    (place / "used/notes.bin").write_bytes(b"\xff\xfe\x00\x01")
    (place / "empty").mkdir()
    for number in range(20):
        picture(place / f"images/all/{number}.png", number=number)
        truncate(picture(place / f"truncated/{number}.jpg", number=number))
        (place / "texts").mkdir(exist_ok=True)
        (place / f"texts/{number}.jpg").write_text("not a picture")
    picture(place / "one/0.png")
    picture(place / "images/more/0.png")
    for family in tiny.FAMILIES:
        (place / f"{family}.yaml").write_text(yaml.safe_dump(dashed(tiny.settings(family))))
    assert poa("pretrain", "--config", tiny_file(place), "--out", place / "run") == 0
    words = "evaluate knn run --train digits/train --limit 50 --test digits/test --sizes 32x2 --name other"
    assert poa(*words.replace("run", str(place / "run"), 1).split()) == 0
    for name in ("damaged", "lost", "unsaved", "broken"):
        shutil.copytree(place / "run", place / name)
    truncate(place / "damaged/checkpoints/step-00000008.pt")
    for step in (4, 8):
        truncate(place / f"lost/checkpoints/step-{step:08}.pt")
        (place / f"unsaved/checkpoints/step-{step:08}.pt").unlink()
    assert poa("extract", place / "run", "--size", "32x2", "--out", place / "model") == 0
    for name in ("bare", "torn"):
        shutil.copytree(place / "model", place / name)
    (place / "bare/model.safetensors").unlink()
    truncate(place / "torn/model.safetensors")
    (place / "broken/eval/knn").mkdir(parents=True)
    (place / "broken/eval/knn/knn.json").write_text("{")
    return place


@pytest.mark.parametrize(("words", "told"), [(words, told) for words, *told in REFUSED.values()], ids=REFUSED)
def test_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, told: list[str]
) -> None:
    monkeypatch.chdir(place)
    message = refused(capsys, *words.split())
    assert [part for part in told if part not in message] == [], message
    assert not (place / "new").exists(), "something is left behind, which is in the way of the next try"
