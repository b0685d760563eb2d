"""Classic networks, small, each with the initialisation of its paper or reference implementation: all of them are healthy."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


def he(model, fan="fan_in"):
    for m in model.modules():
        if isinstance(m, (nn.Linear, nn.Conv2d)):
            nn.init.kaiming_normal_(m.weight, mode=fan, nonlinearity="relu")
            if m.bias is not None:
                nn.init.zeros_(m.bias)
    return model


class LeNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5, padding=2), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc3(F.relu(self.fc2(x)))


def vgg(norm):
    layers, channels = [], 3
    for width in (16, 16, "M", 32, 32, "M", 64, 64, 64, "M"):
        if width == "M":
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(channels, width, 3, padding=1), *([nn.BatchNorm2d(width)] if norm else []), nn.ReLU(inplace=True)]
        channels = width
    model = he(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 10)), "fan_out")
    nn.init.normal_(model[-1].weight, 0, 0.01)
    return model


class Basic(nn.Module):
    def __init__(self, i, o, stride=1):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o)
        self.conv2, self.bn2 = nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o)
        self.down = nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o)) if stride > 1 or i != o else None

    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        out += x if self.down is None else self.down(x)
        return F.relu(out, inplace=True)


def resnet(blocks=2, zero_gamma=False, block=Basic):
    layers, width = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()], 16
    for stage in range(3):
        for k in range(blocks):
            out = 16 * 2**stage
            layers.append(block(width, out, 2 if k == 0 and stage else 1))
            width = out
    model = he(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)), "fan_out")
    if zero_gamma:
        for m in model.modules():
            if isinstance(m, Basic):
                nn.init.zeros_(m.bn2.weight)
    return model


class Bottleneck(nn.Module):
    def __init__(self, i, o, stride=1):
        super().__init__()
        m = o // 4
        self.body = nn.Sequential(nn.Conv2d(i, m, 1, bias=False), nn.BatchNorm2d(m), nn.ReLU(), nn.Conv2d(m, m, 3, stride, 1, bias=False), nn.BatchNorm2d(m),
                                  nn.ReLU(), nn.Conv2d(m, o, 1, bias=False), nn.BatchNorm2d(o))
        self.skip = nn.Identity() if i == o and stride == 1 else nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o))

    def forward(self, x):
        return F.relu(self.body(x) + self.skip(x))


class DenseNet(nn.Module):
    def __init__(self, growth=8, layers=6):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.parts = nn.ModuleList(nn.Sequential(nn.BatchNorm2d(16 + growth * k), nn.ReLU(), nn.Conv2d(16 + growth * k, growth, 3, padding=1, bias=False))
                                   for k in range(layers))
        self.head = nn.Sequential(nn.BatchNorm2d(16 + growth * layers), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16 + growth * layers, 10))
        he(self)

    def forward(self, x):
        x = self.stem(x)
        for part in self.parts:
            x = torch.cat([x, part(x)], 1)
        return self.head(x)


class Inverted(nn.Module):
    def __init__(self, i, o, stride, expand=6):
        super().__init__()
        h = i * expand
        self.body = nn.Sequential(nn.Conv2d(i, h, 1, bias=False), nn.BatchNorm2d(h), nn.ReLU6(), nn.Conv2d(h, h, 3, stride, 1, groups=h, bias=False),
                                  nn.BatchNorm2d(h), nn.ReLU6(), nn.Conv2d(h, o, 1, bias=False), nn.BatchNorm2d(o))
        self.skip = stride == 1 and i == o

    def forward(self, x):
        return x + self.body(x) if self.skip else self.body(x)


def mobilenet():
    model = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(), Inverted(16, 16, 1), Inverted(16, 24, 2), Inverted(24, 24, 1),
                          Inverted(24, 32, 2), Inverted(32, 32, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(32, 10))
    he(model, "fan_out")
    nn.init.normal_(model[-1].weight, 0, 0.01)
    return model


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        def double(i, o):
            return nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.ReLU(), nn.Conv2d(o, o, 3, padding=1), nn.ReLU())
        self.a, self.b, self.c = double(3, 16), double(16, 32), double(32, 64)
        self.up1, self.d1 = nn.ConvTranspose2d(64, 32, 2, 2), double(64, 32)
        self.up2, self.d2 = nn.ConvTranspose2d(32, 16, 2, 2), double(32, 16)
        self.out = nn.Conv2d(16, 5, 1)
        he(self)

    def forward(self, x):
        a = self.a(x)
        b = self.b(F.max_pool2d(a, 2))
        c = self.c(F.max_pool2d(b, 2))
        y = self.d1(torch.cat([self.up1(c), b], 1))
        return self.out(self.d2(torch.cat([self.up2(y), a], 1)))


class MixerBlock(nn.Module):
    def __init__(self, tokens, dim):
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.t = nn.Sequential(nn.Linear(tokens, 32), nn.GELU(), nn.Linear(32, tokens))
        self.c = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x):
        x = x + self.t(self.n1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.c(self.n2(x))


class Mixer(nn.Module):
    def __init__(self, dim=32, depth=4):
        super().__init__()
        self.patch = nn.Conv2d(3, dim, 8, 8)
        self.blocks = nn.Sequential(*[MixerBlock(16, dim) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 10)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(x)).mean(1))


class ViT(nn.Module):
    def __init__(self, dim=32, depth=4):
        super().__init__()
        self.patch = nn.Conv2d(3, dim, 8, 8)
        self.cls, self.pos = nn.Parameter(torch.zeros(1, 1, dim)), nn.Parameter(torch.randn(1, 17, dim) * 0.02)
        layer = nn.TransformerEncoderLayer(dim, 4, 4 * dim, 0.0, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, nn.LayerNorm(dim), enable_nested_tensor=False)
        self.head = nn.Linear(dim, 10)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.pos
        return self.head(self.encoder(x)[:, 0])


class ConvNeXtBlock(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.dw, self.norm = nn.Conv2d(dim, dim, 7, padding=3, groups=dim), nn.LayerNorm(dim, eps=1e-6)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(torch.full((dim,), 1e-6))

    def forward(self, x):
        y = self.norm(self.dw(x).permute(0, 2, 3, 1))
        return x + (self.gamma * self.down(F.gelu(self.up(y)))).permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    def __init__(self, dim=24, depth=4):
        super().__init__()
        self.stem = nn.Conv2d(3, dim, 4, 4)
        self.blocks = nn.Sequential(*[ConvNeXtBlock(dim) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 10)
        for m in self.modules():
            if isinstance(m, (nn.Conv2d, nn.Linear)):
                nn.init.trunc_normal_(m.weight, std=0.02)
                nn.init.zeros_(m.bias)

    def forward(self, x):
        return self.head(self.norm(self.blocks(self.stem(x)).mean((2, 3))))


class LanguageModel(nn.Module):
    def __init__(self, vocabulary=200, dim=32):
        super().__init__()
        self.emb = nn.Embedding(vocabulary, dim)
        self.lstm = nn.LSTM(dim, dim, 2, batch_first=True, dropout=0.2)
        self.out = nn.Linear(dim, vocabulary)

    def forward(self, x):
        return self.out(self.lstm(self.emb(x))[0])


def dcgan(kind):
    def init(m):
        if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(m.weight, 0.0, 0.02)
        elif isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.weight, 1.0, 0.02)
            nn.init.zeros_(m.bias)
    if kind == "generator":
        model = nn.Sequential(nn.ConvTranspose2d(32, 64, 4, 1, 0, bias=False), nn.BatchNorm2d(64), nn.ReLU(True), nn.ConvTranspose2d(64, 32, 4, 2, 1, bias=False),
                              nn.BatchNorm2d(32), nn.ReLU(True), nn.ConvTranspose2d(32, 16, 4, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(True),
                              nn.ConvTranspose2d(16, 3, 4, 2, 1, bias=False), nn.Tanh())
    else:
        model = nn.Sequential(nn.Conv2d(3, 16, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, True), nn.Conv2d(16, 32, 4, 2, 1, bias=False), nn.BatchNorm2d(32),
                              nn.LeakyReLU(0.2, True), nn.Conv2d(32, 64, 4, 2, 1, bias=False), nn.BatchNorm2d(64), nn.LeakyReLU(0.2, True),
                              nn.Conv2d(64, 1, 4, 1, 0, bias=False), nn.Sigmoid())
    return model.apply(init)


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.enc, self.mu, self.logvar = nn.Linear(64, 40), nn.Linear(40, 8), nn.Linear(40, 8)
        self.dec, self.out = nn.Linear(8, 40), nn.Linear(40, 64)

    def forward(self, x):
        h = F.relu(self.enc(x))
        mu, logvar = self.mu(h), self.logvar(h)
        z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)
        return torch.sigmoid(self.out(F.relu(self.dec(z)))), mu, logvar


def stack(depth, width, activation, init, inputs=32, outputs=10):
    layers = [nn.Linear(inputs, width), activation()]
    for _ in range(depth - 2):
        layers += [nn.Linear(width, width), activation()]
    model = nn.Sequential(*layers, nn.Linear(width, outputs))
    for m in model:
        if isinstance(m, nn.Linear):
            init(m.weight)
            nn.init.zeros_(m.bias)
    return model


def lecun(weight):
    nn.init.kaiming_normal_(weight, nonlinearity="linear")


def images(n=16, side=32, channels=3):
    return torch.randn(n, channels, side, side)


def labels(n=16):
    return torch.randint(0, 10, (n,))


def vae_loss(output, x):
    reconstruction, mu, logvar = output
    return F.binary_cross_entropy(reconstruction, x) - 0.5 * (1 + logvar - mu**2 - logvar.exp()).mean()


CE = F.cross_entropy
HEALTHY = {
    "lenet": (LeNet, lambda: (images(32, 28, 1), labels(32)), CE),
    "vgg he": (lambda: vgg(False), lambda: (images(), labels()), CE),
    "vgg bn": (lambda: vgg(True), lambda: (images(), labels()), CE),
    "resnet basic": (resnet, lambda: (images(), labels()), CE),
    "resnet zero gamma": (lambda: resnet(zero_gamma=True), lambda: (images(), labels()), CE),
    "resnet bottleneck": (lambda: resnet(4, block=Bottleneck), lambda: (images(), labels()), CE),
    "densenet": (DenseNet, lambda: (images(), labels()), CE),
    "mobilenet": (mobilenet, lambda: (images(), labels()), CE),
    "unet": (UNet, lambda: (images(4), torch.randint(0, 5, (4, 32, 32))), CE),
    "mixer": (Mixer, lambda: (images(), labels()), CE),
    "vit": (ViT, lambda: (images(), labels()), CE),
    "convnext": (ConvNeXt, lambda: (images(), labels()), CE),
    "lstm lm": (LanguageModel, lambda: (torch.randint(0, 200, (16, 20)), torch.randint(0, 200, (16, 20))), lambda o, t: CE(o.flatten(0, 1), t.flatten())),
    "generator": (lambda: dcgan("generator"), lambda: torch.randn(16, 32, 1, 1), None),
    "discriminator": (lambda: dcgan("discriminator"), lambda: (images(), torch.ones(16, 1, 1, 1)), F.binary_cross_entropy),
    "vae": (VAE, lambda: (x := torch.rand(64, 64), x), vae_loss),
    "selu 100": (lambda: stack(100, 64, nn.SELU, lecun), lambda: (torch.randn(128, 32), labels(128)), CE),
    "tanh 30": (lambda: stack(30, 64, nn.Tanh, nn.init.xavier_normal_), lambda: (torch.randn(128, 32), labels(128)), CE),
    "relu he 34": (lambda: stack(34, 128, nn.ReLU, lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu")), lambda: (torch.randn(128, 32), labels(128)), CE),
    "default shallow": (lambda: nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)),
                        lambda: (torch.randn(128, 32), labels(128)), CE),
    "transformer": (lambda: Pair(), lambda: torch.randn(8, 10, 32), None),
    "gru": (lambda: Tail(nn.GRU(8, 16, batch_first=True)), lambda: (torch.randn(16, 20, 8), labels(16)), CE),
    "rnn": (lambda: Tail(nn.RNN(8, 16, batch_first=True)), lambda: (torch.randn(16, 20, 8), labels(16)), CE),
}


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.transformer = nn.Transformer(32, 4, 2, 2, 64, batch_first=True)

    def forward(self, x):
        return self.transformer(x, x.flip(1))


class Tail(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body, self.head = body, nn.Linear(16, 10)

    def forward(self, x):
        return self.head(self.body(x)[0][:, -1])


def tiny_transformers():
    """(name, builder) of Hugging Face models with small random configurations."""
    import transformers as t

    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 200, "max_position_embeddings": 64}
    yield "gpt2", lambda: t.GPT2LMHeadModel(t.GPT2Config(n_layer=3, n_embd=32, n_head=4, vocab_size=200, n_positions=64))
    yield "bert", lambda: t.BertForSequenceClassification(t.BertConfig(**small))
    yield "distilbert", lambda: t.DistilBertForMaskedLM(t.DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=64, vocab_size=200, max_position_embeddings=64))
    yield "t5", lambda: t.T5ForConditionalGeneration(t.T5Config(d_model=32, d_ff=64, num_layers=2, num_heads=4, d_kv=8, vocab_size=200, decoder_start_token_id=0))
    yield "opt", lambda: t.OPTForCausalLM(t.OPTConfig(hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=200,
                                                      max_position_embeddings=64, word_embed_proj_dim=32))
    yield "llama", lambda: t.LlamaForCausalLM(t.LlamaConfig(**small))
    vision = {"image_size": 32, "patch_size": 8, **{k: small[k] for k in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")}}
    yield "vit hf", lambda: t.ViTForImageClassification(t.ViTConfig(**vision))
    yield "convnext hf", lambda: t.ConvNextForImageClassification(t.ConvNextConfig(image_size=32, hidden_sizes=[16, 32], depths=[2, 2], num_stages=2))
    yield "resnet hf", lambda: t.ResNetForImageClassification(t.ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[2, 2], layer_type="basic"))
    yield "whisper", lambda: t.WhisperForConditionalGeneration(t.WhisperConfig(
        d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64,
        vocab_size=200, max_source_positions=50, max_target_positions=50, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1))


