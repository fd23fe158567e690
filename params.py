"""Every hyperparameter, one a line. Edit and run again, or override one: python train.py --d_model 128"""

# the model
d_model = 192  # width: numbers in the vector that stands for a token
num_heads = 3  # attention heads in a layer; d_model / num_heads, a head's size, is even
num_layers = 4  # blocks, each an attention and an MLP
max_seq_len = 128  # window: how many tokens the model sees at once
vocab_size = 5000  # entries of the BPE tokenizer, its 256 bytes and <EOS> included
dropout = 0.0  # share of activations zeroed while training; more than 0 only for many epochs

# the text
dataset = "Den4ikAI/russian_cleared_wikipedia"  # or a file or folder: jsonl, json, txt, csv, parquet, xz, gz
text_column = "sample"  # the column that holds the text (a .txt file has none: each line is a text)
val_fraction = 0.02  # share of the articles, the last ones, held out for validation
tokenizer_chars = 10_000_000  # that the tokenizer trains on, about; a longer text is sampled evenly

# training
epochs = 1.0  # passes over the text; 0.25 trains on the first quarter of the shuffled windows
sample_epochs = 4.5  # passes over the bundled encyclopedia, in place of epochs; --epochs overrides both
batch_size = 16  # windows in a step
learning_rate = 0.006  # Adam's, at its peak
embedding_rate = 3.0  # the rate of the embedding, as a multiple of learning_rate
warmup = 0.05  # share of the steps in which the rate rises from 0; 0.15 is better for some hundred steps
decay = 0.6  # share of the steps, the last ones, in which the rate falls to 0 in a straight line
grad_clip = 1.0  # longest gradient, as a norm over all parameters
adam_beta1 = 0.8  # how long Adam remembers the gradients: about 1 / (1 - adam_beta1) steps
adam_beta2 = 0.98  # how long it remembers their squares; smaller batches want longer: 0.995 for 4 windows
weight_decay = 0.6  # share of a weight that a run takes away at the peak rate, divided by sqrt(epochs)
eval_every = 100  # steps between two validation losses
eval_windows = 128  # held-out windows at most that a validation loss is measured on, an even sample
checkpoint_minutes = 3.0  # minutes between two checkpoints, from which a run that was killed goes on
snapshots = 12  # of the weights: before training, then at steps further and further apart; 0 for none
precision = "auto"  # of matrix products: float32, bfloat16, or auto (bfloat16 if the hardware can)
compile = "auto"  # torch.compile the model: on, off, or auto (if that saves more than the minute it takes)
seed = 0  # of the weights, the order of the windows, and sampling
out_dir = "."  # where bpe_tokenizer.json, parameters.pt2 and the rest land
