"""What can be downloaded: where the field's reward models are published, file by file.

Tables hold name, bytes and SHA-256. Revisions and checksums are pinned where they could be
verified; elsewhere (-) the server's own checksum and length are what a download is checked against.
"""

from __future__ import annotations

from dataclasses import replace

from .source import RemoteFile, Source

_VIT_H_14_PARAMETERS = 986_109_441


def _table(base: str, rows: str) -> tuple[RemoteFile, ...]:
    """The files of a table, each at base/name and by its bare name."""
    return tuple(
        RemoteFile(
            f"{base}/{path.replace('+', '%2B')}",
            path.rpartition("/")[2],
            int(size.replace("-", "0")),
            sha256.replace("-", ""),
        )
        for path, size, sha256 in (row.split() for row in rows.strip().splitlines())
    )


def _hub(repository: str, revision: str, rows: str) -> tuple[RemoteFile, ...]:
    return _table(f"https://huggingface.co/{repository}/resolve/{revision}", rows)


def _github(repository: str, revision: str, rows: str) -> tuple[RemoteFile, ...]:
    return _table(f"https://raw.githubusercontent.com/{repository}/{revision}", rows)


def _single(files: tuple[RemoteFile, ...], licence: str, page: str) -> Source:
    """A model of one file."""
    (file,) = files
    return Source(file.name, (replace(file, name=""),), licence, page)


LAION_V2 = _single(
    _github(
        "christophschuhmann/improved-aesthetic-predictor",
        "6934dd81792f086e613a121dbce43082cb8be85e",
        "sac+logos+ava1-l14-linearMSE.pth 3714759"
        " 21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
    ),
    "Apache-2.0",
    "https://github.com/christophschuhmann/improved-aesthetic-predictor",
)


def _laion_v1(row: str) -> Source:
    revision = "6d122adad522ab246644d9dc1c6d7a3810ee255f"
    files = _github("LAION-AI/aesthetic-predictor", revision, row)
    return _single(files, "MIT", "https://github.com/LAION-AI/aesthetic-predictor")


LAION_V1 = {
    "l_14": _laion_v1(
        "sa_0_4_vit_l_14_linear.pth 4071"
        " 2cd4e60f4f24ae3bcd57b847b13c1f3ba27edc28cc1a7f9ce74ee9f421243cba"
    ),
    "b_32": _laion_v1(
        "sa_0_4_vit_b_32_linear.pth 3047"
        " c7b14cead230694acc7b9447974d3cad78003c72da032e402a303b6c2429e85f"
    ),
    "b_16": _laion_v1(
        "sa_0_4_vit_b_16_linear.pth 3047"
        " 8ad3923d7ecf019df20ecd2ab5542a3075fbba0278d239c0371345f3d7fcbde0"
    ),
}

AESTHETIC_V25 = _single(
    _github(
        "discus0434/aesthetic-predictor-v2-5",
        "c0e15567fa61252cbff43d70c49a8bd27202ca9a",
        "models/aesthetic_predictor_v2_5.pth 2644834"
        " a6caf256b3dc434273c98dcb12f6bf17c5d4fc647d8df11f038386923dd06220",
    ),
    "AGPL-3.0",
    "https://github.com/discus0434/aesthetic-predictor-v2-5",
)

CLIP_L14 = Source(
    "clip-vit-large-patch14",
    _hub(
        "openai/clip-vit-large-patch14",
        "32bd64288804d66eefd0ccbe215aa642df71cc41",
        """
config.json 4519 8a09b467700c58138c29d53c605b34ebc69beaadd13274a8a2af8ad2c2f4032a
preprocessor_config.json 316 910e70b3956ac9879ebc90b22fb3bc8a75b6a0677814500101a4c072bd7857bd
merges.txt 524619 9fd691f7c8039210e0fced15865466c65820d09b63988b0174bfe25de299051a
vocab.json 961143 3f0c4f7d2086b61b38487075278ea9ed04edb53a03cbb045b86c27190fa8fb69
tokenizer.json 2224003 a83e0809aa4c3af7208b2df632a7a69668c6d48775b3c3fe4e1b1199d1f8b8f4
tokenizer_config.json 905 deef455e52fa5e8151e339add0582e4235f066009601360999d3a9cda83b1129
special_tokens_map.json 389 f8c0d6c39aee3f8431078ef6646567b0aba7f2246e9c54b8b99d55c22b707cbf
model.safetensors 1710540580 a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb
""",
    ),
    "MIT",
    "https://huggingface.co/openai/clip-vit-large-patch14",
)

CLIP_B32 = Source(
    "clip-vit-base-patch32",
    _hub(
        "openai/clip-vit-base-patch32",
        "3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268",
        """
config.json 4186 b575ef3c36f2a057fa19e221650105052d61cc9c1a972ec15019c6261ec98770
preprocessor_config.json 316 910e70b3956ac9879ebc90b22fb3bc8a75b6a0677814500101a4c072bd7857bd
merges.txt 524657 f526393189112391ce6f9795d4695f704121ce452c3aad1f5335cc41337eba85
vocab.json 862328 5047b556ce86ccaf6aa22b3ffccfc52d391ea4accdab9c2f2407da5b742d4363
tokenizer.json 2224041 b556ac8c99757ffb677208af34bc8c6721572114111a6e0aaf5fa69ff0b8d842
tokenizer_config.json 592 34b7336e4bee12e0a9730eaf5189f582ef3c3eea5027f65730e5717256755aad
special_tokens_map.json 389 f8c0d6c39aee3f8431078ef6646567b0aba7f2246e9c54b8b99d55c22b707cbf
pytorch_model.bin 605247071 a63082132ba4f97a80bea76823f544493bffa8082296d62d71581a4feff1576f
""",
    ),
    "MIT",
    "https://huggingface.co/openai/clip-vit-base-patch32",
)

SIGLIP_SO400M = Source(
    "siglip-so400m-patch14-384",
    _hub(
        "google/siglip-so400m-patch14-384",
        "9fdffc58afc957d1a03a25b10dba0329ab15c2a3",
        """
config.json 576 adc04928d8fd19a61822584fe0cf2e813e5ebac17f3e49fb1ea096860ae6457b
preprocessor_config.json 368 f59da2f87c3cd079bd4f8f3037e81b277c60c498e279a8020331f67a5a3157e8
spiece.model 798330 1e5036bed065526c3c212dfbe288752391797c4bb1a284aa18c9a0b23fcaf8ec
tokenizer.json 2399357 c6e405cb7c670d56636a9402c81023a55bc6c3c53d89cf02b92f5c5005bfe920
tokenizer_config.json 711 d6423dae508cc3a129d22ea443841c111832a1a73125b8f25ea8736951698bcb
special_tokens_map.json 409 2b6a1ff67a27e0df9ac0c7d93250fc0d87431c7b366b3d5669217104f9088a26
model.safetensors 3511950624 ea2abad2b7f8a9c1aa5e49a244d5d57ffa71c56f720c94bc5d240ef4d6e1d94a
""",
    ),
    "Apache-2.0",
    "https://huggingface.co/google/siglip-so400m-patch14-384",
)

_VIT_H_14_PROCESSOR = _hub(
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    "1c2b8495b28150b8a4922ee1c8edee224c284c0c",
    """
preprocessor_config.json - -
merges.txt - -
vocab.json - -
tokenizer.json - -
tokenizer_config.json - -
special_tokens_map.json - -
""",
)

PICKSCORE = Source(
    "PickScore_v1",
    _VIT_H_14_PROCESSOR
    + _hub(
        "yuvalkirstain/PickScore_v1",
        "a4e4367c6dfa7288a00c550414478f865b875800",
        f"config.json - -\nmodel.safetensors {4 * _VIT_H_14_PARAMETERS} -",
    ),
    "code MIT",
    "https://huggingface.co/yuvalkirstain/PickScore_v1",
)


def _hps(row: str) -> Source:
    files = _hub("xswu/HPSv2", "697403c78157020a1ae59d23f111aa58ced35b0a", row)
    return _single(files, "Apache-2.0", "https://huggingface.co/xswu/HPSv2")


HPS_V2 = _hps(f"HPS_v2_compressed.pt {2 * _VIT_H_14_PARAMETERS} -")

HPS_V21 = _hps(
    "HPS_v2.1_compressed.pt 1972490005"
    " c57a38fb4a2f7e7c15bf00da2ea377cdf165448b4dd1052a484c215a998c9837"
)

IMAGE_REWARD = Source(
    "ImageReward",
    _hub(
        "google-bert/bert-base-uncased",
        "86b5e0934494bd15c9632b12f734a8a67f723594",
        """
vocab.txt 231508 07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3
tokenizer.json 466062 ce64fce797c24f68df90b40a3f74f579b336a493db14bd583fd520ea0d8c9a98
tokenizer_config.json 48 a025160ef0431f1a392f6f050c1310f4c5d9fb6f275932dbccba73c4d214bf10
""",
    )
    + _hub(
        "THUDM/ImageReward",
        "5736be03b2652728fb87788c9797b0570450ab72",
        """
med_config.json 485 d8b5029cc3c0124313d17009d043f0701bbe497f3721fa4ceb818720fe665326
ImageReward.pt 1786880927 -
""",
    ),
    "Apache-2.0",
    "https://huggingface.co/THUDM/ImageReward",
)

MPS = Source(
    "MPS",
    _VIT_H_14_PROCESSOR + _hub("RE-N-Y/mpsv1", "main", "model.safetensors - -"),
    "MIT",
    "https://huggingface.co/RE-N-Y/mpsv1",
)


def _lpips(name: str, network: str, head: str) -> Source:
    """The linear head of LPIPS beside the ImageNet network of torchvision that it was fitted to."""
    heads = "082bb24f84c091ea94de2867d34c4544f68e0963"
    return Source(
        name,
        _table("https://download.pytorch.org/models", network)
        + _github("richzhang/PerceptualSimilarity", heads, head),
        "BSD-2-Clause",
        "https://github.com/richzhang/PerceptualSimilarity",
    )


LPIPS_ALEX = _lpips(
    "lpips_alex",
    "alexnet-owt-7be5be79.pth 244408911"
    " 7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
    "lpips/weights/v0.1/alex.pth 6009"
    " df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
)

LPIPS_VGG = _lpips(
    "lpips_vgg",
    "vgg16-397923af.pth 553433881 397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    "lpips/weights/v0.1/vgg.pth 7289"
    " a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
)


def _st_lpips(row: str) -> Source:
    revision = "9a53cd5a2a3bc837c9a6e4445cc1ffb302127a74"
    files = _github("abhijay9/ShiftTolerant-LPIPS", revision, row)
    return _single(files, "BSD-2-Clause", "https://github.com/abhijay9/ShiftTolerant-LPIPS")


LPIPS_ST_ALEX = _st_lpips(
    "stlpips/weights/vST0.0/alex_shift_tolerant.pth 9899296"
    " b356b382f96010f77d085ee8343ecd9fd322d0a56e8de2b2d0549fafcad8b9ee"
)

LPIPS_ST_VGG = _st_lpips(
    "stlpips/weights/vST0.0/vgg_shift_tolerant.pth 58907298"
    " 44597da68f49c1837c100ff52299050f274d102eb102e5837178c79be6f0e250"
)

SOURCES = (
    LAION_V2,
    *LAION_V1.values(),
    AESTHETIC_V25,
    CLIP_L14,
    CLIP_B32,
    SIGLIP_SO400M,
    PICKSCORE,
    HPS_V2,
    HPS_V21,
    IMAGE_REWARD,
    MPS,
    LPIPS_ALEX,
    LPIPS_VGG,
    LPIPS_ST_ALEX,
    LPIPS_ST_VGG,
)
