.PHONY: check format pictures benchmarks instructions

check:  ## what CI runs, in the environment at hand
	ruff format --check .
	ruff check .
	pyright
	pytest

format:
	ruff format .
	ruff check --fix .

pictures:  ## docs/*.png, from real runs; needs chromium and chromedriver
	python docs/pictures.py

benchmarks:  ## compares with more where pip install -e '.[benchmarks]' was run
	python benchmarks/encode.py
	python benchmarks/prepare.py
	python benchmarks/windows.py
	python benchmarks/batches.py
	python benchmarks/growth.py
	python benchmarks/waiting.py
	python benchmarks/embedding.py
	python benchmarks/step.py
	python benchmarks/startup.py
	python benchmarks/reading.py

instructions:  ## five hot paths, by the instructions that they take, beside those on file; needs valgrind
	python benchmarks/instructions.py
