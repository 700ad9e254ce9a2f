"""The DreamBooth benchmark: cases, embedders, metrics, generation and scoring (paper Section 4).

    benchmark = load_benchmark(folder)                                            # cases.py
    models = {"backbone": ..., "adapters": model_identity(adapters_folder),       # models.py
              "dino": model_identity(dino_folder), "clip": model_identity(clip_folder)}
    evaluation = Evaluation(run / "evaluation", benchmark, EvaluationConfig(), models, masks)   # evaluation.py
    evaluation.changes()                                  # why shards have to be made; [] when all is up to date
    generate_cases(evaluation, backbone, adapters)        # generation.py: images/
    embed_cases(evaluation, load_dino(dino_folder), load_clip(clip_folder))       # scoring.py: embeddings/
    rows, real_rows = score_cases(evaluation)             # no model from here on
    write_results(evaluation.folder, rows, real_rows, summarize(rows, real_rows))    # summary.py

Of these, generation and the embedders alone need torch. The images and digests of DreamBooth itself are by its authors,
under CC BY 4.0; the package holds its digests, prompts and subject table, no images.
"""
