// A backend on its first day: it speaks OpenAI's protocol, and has no model yet.
// node naive_server.js [PORT]
const http = require("node:http");

const usage = { prompt_tokens: 1, completion_tokens: 1, total_tokens: 2 };

const routes = {
  "/v1/completions": ({ prompt }) => ({ choices: [{ text: `${prompt}, hello!` }], usage }),
  "/v1/chat/completions": ({ messages }) => ({
    choices: [{ message: { role: "assistant", content: messages.at(-1).content } }],
    usage,
  }),
  "/v1/embeddings": ({ input }) => ({
    data: [input].flat().map((text) => ({ embedding: [text.length, 1, 0] })),
    usage,
  }),
};

const server = http.createServer(async (request, response) => {
  const parts = await request.toArray();
  try {
    const answer = routes[request.url](JSON.parse(Buffer.concat(parts).toString()));
    response.end(JSON.stringify(answer));
  } catch (error) {
    response.statusCode = 500;
    response.end(String(error));
  }
});

server.listen(Number(process.argv[2] ?? 0), "127.0.0.1", () => {
  console.log(`listening on http://127.0.0.1:${server.address().port}`);
});
