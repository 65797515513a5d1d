// A figure fills the window when it is clicked, or chosen with the keyboard; the next click or Escape closes it.
document.addEventListener("DOMContentLoaded", () => {
  const dialog = document.createElement("dialog");
  dialog.className = "enlarged";
  dialog.setAttribute("aria-label", "enlarged figure");
  dialog.append(document.createElement("img"));
  dialog.addEventListener("click", () => dialog.close());
  dialog.addEventListener("keydown", (event) => event.key === "Escape" && dialog.close());
  document.body.append(dialog);
  for (const image of document.querySelectorAll(".bd-article img")) {
    if (image.closest("a") && !image.closest("a.image-reference")) continue;
    const button = document.createElement("button");
    button.className = "enlarge";
    button.type = "button";
    button.title = "Enlarge the figure";
    const picture = image.closest("a.image-reference") || image;
    picture.replaceWith(button);
    button.append(image);
    button.addEventListener("click", () => {
      dialog.firstChild.src = image.src;
      dialog.firstChild.alt = image.alt;
      dialog.showModal();
    });
  }
});
