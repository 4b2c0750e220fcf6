"""Train the shipped networks: the only home of torch in flatscope (extra ``train``).

A training run reads top to bottom::

    recipe = recipes.load("flakes")
    trained = flakes.train(recipe, out=folder)
    onnx_export.export(trained.net, trained.card, folder / "flakes.onnx", calibration=trained.calibration)

`engine` is the loop that all networks go through; `flakes`, `columns`, `defects`, `orientation` and `translator` know
their pictures and their losses; `nets` has a file for each network, `recipes` all settings.

Nothing is imported here, so that ``import flatscope`` never pays for torch.
"""
