# make install   a virtual environment with everything
# make demo      train on embedded smart-home commands, before/after table, two predictions
# make demo-pretrain   from raw text: tokenizer, store, language model, generated text, a fine-tune from the result
# make demo-compress   the model of `make demo` pruned, in int8, and both at once; size, speed and accuracy side by side
# make test      lint, types, tests

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUTPUT ?= runs/demo
PRETRAIN ?= runs/pretrain
COMPRESS ?= runs/compress

.PHONY: install demo demo-pretrain demo-compress test lint types pytest clean

install: $(VENV)/.installed

# Installed anew whenever the dependencies change.
$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/llm-arch fit -c task/text_classification --output $(OUTPUT) --overwrite
	$(BIN)/llm-arch predict --model $(OUTPUT)/model --text 'make the bedroom a bit brighter' 'how warm is it in the kitchen'

demo-pretrain: install
	$(BIN)/llm-arch tokenizer --input stdlib:docs --kind bpe --vocabulary 4096 --output $(PRETRAIN)/tokenizer --overwrite
	$(BIN)/llm-arch prepare --input stdlib:docs --tokenizer $(PRETRAIN)/tokenizer --output $(PRETRAIN)/store --overwrite
	$(BIN)/llm-arch fit -c pretrain/clm --data.train $(PRETRAIN)/store --data.max_length 256 --data.max_tokens 1024 \
		--model.backbone mini:llama --model.optimizer llm_arch.optim.Muon --model.optimizer.lr 6e-3 \
		--model.learning_rate null --trainer.max_steps 200 --output $(PRETRAIN)/language_model --overwrite
	$(BIN)/llm-arch generate --model $(PRETRAIN)/language_model/model --prompt 'Return the' 'If the' --temperature 0.7
	$(BIN)/llm-arch fit -c task/text_classification --model.backbone $(PRETRAIN)/language_model/model \
		--trainer.max_epochs 1 --output $(PRETRAIN)/tuned --overwrite

demo-compress: install
	test -d $(OUTPUT)/model || $(BIN)/llm-arch fit -c task/text_classification --output $(OUTPUT) --overwrite
	$(BIN)/llm-arch compress --model $(OUTPUT) --recipe compress/retraining_free --data smart_home \
		--output $(COMPRESS)/retraining_free --overwrite
	$(BIN)/llm-arch compress --model $(OUTPUT) --recipe compress/joint --data smart_home \
		--trainer.max_epochs 3 --output $(COMPRESS)/joint --overwrite
	$(BIN)/llm-arch export --model $(OUTPUT) --to onnx --int8 --data smart_home:test --output $(COMPRESS)/int8
	$(BIN)/llm-arch export --model $(COMPRESS)/joint --to onnx --int8 --data smart_home:test \
		--output $(COMPRESS)/joint_int8
	$(BIN)/llm-arch benchmark --model $(OUTPUT) --against $(COMPRESS)/retraining_free $(COMPRESS)/int8 \
		$(COMPRESS)/joint $(COMPRESS)/joint_int8 --data smart_home:test --lengths 16 --seconds 3 \
		--output $(COMPRESS)/benchmark

test: lint types pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

pytest: install
	$(BIN)/python -m pytest

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
