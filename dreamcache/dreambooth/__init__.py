"""The DreamBooth benchmark: cases, embedders, metrics, generation and scoring (paper Section 4).

    benchmark = load_benchmark(folder)                                            # cases.py
    models = {"backbone": ..., "adapters": model_identity(adapters_folder),       # models.py
              "dino": model_identity(dino_folder), "clip": model_identity(clip_folder)}
    evaluation = Evaluation(run / "evaluation", benchmark, EvaluationConfig(), models)    # evaluation.py
    evaluation.changes()                                  # why shards have to be made; [] when all is up to date
    generate_cases(evaluation, backbone, adapters)        # generation.py: images/
    embed_cases(evaluation, {"dino": load_dino(dino_folder), "clip": load_clip(clip_folder)})    # scoring.py
    rows, real_rows = score_cases(evaluation)             # rows.py: no model from here on
    write_results(evaluation.folder, rows, real_rows, summarize(rows, real_rows))    # scoring.py, summary.py

For masked metrics the caller runs a mask stage on `evaluation.mask_plans` before sampling (real images) and after it,
on pictures written by masked.py; this package takes masks and never makes them.

Of these, generation and the embedders alone need torch. The images and digests of DreamBooth itself are by its authors,
under CC BY 4.0; the package holds its digests, prompts and subject table, no images.
"""
