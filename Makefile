.PHONY: check format pictures benchmarks

check:  ## what CI runs, in the environment at hand
	ruff format --check .
	ruff check .
	pyright
	pytest

format:
	ruff format .
	ruff check --fix .

pictures:  ## docs/tensorboard.png, from a real run; needs chromium and chromedriver
	python docs/pictures.py

benchmarks:
	python benchmarks/windows.py
	python benchmarks/batches.py
	python benchmarks/embedding.py
	python benchmarks/step.py
	python benchmarks/startup.py
