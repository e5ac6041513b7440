// Starts the page with the model that stands in it: in a worker, or where a page from disk may have none, beside it.

function openWriter() {
  try {
    const source = [document.getElementById("engine").textContent, "\nserveWriter(self);"];
    return new Worker(URL.createObjectURL(new Blob(source, { type: "text/javascript" })));
  } catch {
    const channel = new MessageChannel();
    serveWriter(channel.port1);
    return channel.port2;
  }
}

const model = document.getElementById("model").textContent;
const writer = openWriter();
startApp(writer, () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([fromBase64(model)]));
  link.download = `${document.title}.safetensors`;
  link.click();
});
writer.postMessage({ kind: "load", model });
