"use strict";
// Section 9: how the model learned.

const training_parts = add_section(
  "training",
  "9. Training",
  "The model learned all of this from text with one rule: change each number slightly so that the next " +
    "token becomes more likely. Here is how the loss fell, on the training text and on held-out text, and " +
    "how the model continued one prompt as it learned." +
    (data.snapshots.length
      ? " The slider at the top of the page goes back to the model of an earlier step."
      : ""),
  "loss = −ln p(next token), the mean over tokens, in nats; e^loss is the perplexity",
  "curve",
  "samples",
);

function draw_training() {
  const { log, samples } = data.measured.training;
  if (log.step) {
    // The training loss is a mean since the row before, so it belongs halfway between
    const halfway = log.step.map((step, i) => (step + (log.step[i - 1] ?? 0)) / 2);
    const lines = [["held-out text", log.step, log.val_loss], ["training text", halfway, log.train_loss]];
    training_parts.curve.append(chart(lines, "step", "nats per token"));
  }
  if (samples.length) {
    const lines = samples.map(({ step, text }) => [String(step), text]);
    training_parts.samples.append(box("continuations during training", 0, table(lines, 0, ["step", "text"])));
  }
}
