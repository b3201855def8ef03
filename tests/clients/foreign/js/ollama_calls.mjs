// Functions over the npm package ollama for tests in another process; see foreign_env.ForeignClient.
import readline from "node:readline";
import { Ollama } from "ollama";

const host = process.env.CLIENT_URL;
const client = new Ollama({ host, headers: { Authorization: `Bearer ${process.env.CLIENT_KEY}` } });

async function collected(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}

const functions = {
  chat: (request) => client.chat(request),
  chat_stream: async (request) => collected(await client.chat({ ...request, stream: true })),
  generate: (request) => client.generate(request),
  generate_stream: async (request) => collected(await client.generate({ ...request, stream: true })),
  embed: (request) => client.embed(request),
  list: () => client.list(),
  ps: () => client.ps(),
  show: (request) => client.show(request),
  version: () => client.version(),
  chat_without_key: (request) => new Ollama({ host }).chat(request),
  async abort_after_first(request) {
    const own = new Ollama({ host, headers: { Authorization: `Bearer ${process.env.CLIENT_KEY}` } });
    let seen = 0;
    try {
      for await (const _ of await own.chat({ ...request, stream: true })) {
        seen += 1;
        own.abort();
      }
    } catch (error) {
      return { seen, name: error.name };
    }
    return { seen, name: "" };
  },
};

async function answer(line) {
  const { function: name, arguments: given } = JSON.parse(line);
  try {
    return { returned: await functions[name](given) };
  } catch (error) {
    return { raised: [error.name], text: error.message, status: error.status_code };
  }
}

for await (const line of readline.createInterface({ input: process.stdin })) {
  process.stdout.write(JSON.stringify(await answer(line)) + "\n");
}
