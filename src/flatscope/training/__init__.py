"""Train the shipped networks: the only home of torch in flatscope (extra ``train``).

A training run reads top to bottom::

    recipe = recipes.load("flakes")
    made = data.build(recipe)
    best = loop.train(recipe, out=folder, data=made)
    net, card = export.read_checkpoint(best)
    export.export(net, card, folder / "flakes.onnx")

Nothing is imported here, so that ``import flatscope`` never pays for torch.
"""
