"""What a finished scene leaves behind: mesh, video, contact sheet and the page a person opens.

Everything here takes arrays, files and callables; nothing knows of diffusion or priors.
"""
