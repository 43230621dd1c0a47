"""The published networks at full size, as their repositories' config.json files describe them."""

UNET = dict(
    block_out_channels=[320, 640, 1280, 1280], layers_per_block=2, sample_size=64,
    down_block_types=[*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    up_block_types=["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
)  # fmt: skip
UNETS = {
    "sd15": {**UNET, "cross_attention_dim": 768, "attention_head_dim": 8},
    "sd21": {
        **UNET, "cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20],
        "use_linear_projection": True,
    },
}  # fmt: skip
VAE = dict(
    block_out_channels=[128, 256, 512, 512], layers_per_block=2, sample_size=512,
    down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
)  # fmt: skip
TEXTS = {
    "sd15": dict(
        vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
        num_attention_heads=12, hidden_act="quick_gelu", eos_token_id=49407, bos_token_id=49406,
    ),
    "sd21": dict(
        vocab_size=49408, hidden_size=1024, intermediate_size=4096, num_hidden_layers=23,
        num_attention_heads=16, hidden_act="gelu", eos_token_id=49407, bos_token_id=49406,
    ),
}  # fmt: skip
