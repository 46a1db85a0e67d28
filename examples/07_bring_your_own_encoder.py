"""Compare encoders on your own events: any Hugging Face id in the local cache, or a path.

python examples/07_bring_your_own_encoder.py 2000 /models/my-encoder
"""

import sys

import headwater

items, events = headwater.sample_files()
max_events, models = int(sys.argv[1]), sys.argv[2:]

for model in [headwater.load_settings().encoder.model, *models]:
    settings = headwater.load_settings(encoder={"model": model})
    frame = headwater.backtest(items, events, policies=["live"], seeds=1, max_events=max_events, settings=settings)
    print(f"{model}: NDCG@20 {frame.loc['live', 'ndcg20']:.4f}")
