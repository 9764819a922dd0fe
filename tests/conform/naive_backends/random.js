// A server of OpenAI's protocol: it gives the prompt back, ignores every option, answers something
// else each time, and ends at a body that is no JSON.
const words = "the fox ran home and was happy again".split(" ");
let n = 0;
const next = () => (n = (n * 1103515245 + 12345) % 2 ** 31) / 2 ** 31;

const server = require("http").createServer((request, response) => {
  let body = "";
  request.on("data", (piece) => (body += piece));
  request.on("end", () => {
    response.setHeader("content-type", "application/json");
    if (request.method === "GET") return response.end(JSON.stringify({ data: [] }));
    const asked = JSON.parse(body);
    if (request.url === "/v1/embeddings") {
      const data = asked.input.map(() => ({ embedding: Array.from({ length: 384 }, next) }));
      return response.end(JSON.stringify({ data, usage: { prompt_tokens: 3 } }));
    }
    const text = asked.prompt + Array.from({ length: 20 }, () => " " + words[(next() * 8) | 0]).join("");
    const usage = { prompt_tokens: asked.prompt.split(" ").length, completion_tokens: 20 };
    response.end(JSON.stringify({ choices: [{ text }], usage }));
  });
});
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
