from jobs.reads import first_layer_reads


def test_mistral_7b_has_the_figures_of_the_paper() -> None:
    reads = first_layer_reads(4096, 4096, 1024)
    assert [r.batch for r in reads] == [1, 16, 256, 1024]
    assert reads[0].without_tables == 25_169_920
    assert reads[0].with_tables == 10_240
    assert [round(r.times) for r in reads] == [2458, 154, 10, 3]


def test_a_q_that_is_wider_than_the_model_is_counted_as_it_is() -> None:
    (reads, *_) = first_layer_reads(2048, 8 * 256, 256)
    assert reads.with_tables == 2 * (2048 + 256)
    (reads, *_) = first_layer_reads(3072, 16 * 256, 16 * 256)
    assert reads.with_tables == 3072 + 3 * 4096
    assert reads.without_tables == 3072 + 3 * 4096 * 3072
