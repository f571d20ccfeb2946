"""The next chapters, shown: a GPT-2 around the EmbeddingModule, three ways to train it, and text out of it again.

gpt.py           vectors -> vectors -> scores: the blocks, and the whole model
sample.py        prompt -> text: a trained model goes on with what it is given
plain_loop.py    batches -> a trained GPT, in a plain PyTorch loop
own_module.py    batches -> a trained GPT, in a LightningModule of one's own

The third way needs no file, only a configuration: ``python train_stub.py fit --config configs/gpt.yaml`` puts the
blocks into EmbeddingStub. All of them are started in the folder above this one.
"""
