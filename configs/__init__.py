"""The settings that ship; `dreamjax --help` lists them."""
