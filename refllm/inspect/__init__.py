"""See every number of a run: why each token was drawn, and every value that led to it.

    drawing        the draws of a generation, each with what it depended on
    stages         one draw through penalty, temperature, softmax, top-k, top-p: why a token lost
    run            a run that is kept: texts, draws, and every value by llama.cpp's name
    quantization   a block of a weight byte by byte, and the error of each type
    document       all of it as JSON; document.schema.json describes it
    files          the page as one file
    app            the page on loopback, which draws a step again with other parameters
    page/          the page itself: plain modules and a style, no build

`refllm explain`, `refllm chat` and `refllm inspect` are its commands.
"""
