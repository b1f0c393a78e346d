// The training image at the pointer. pages/_thumbnails.py puts this beside a map, with a span that
// says which figure (its Streamlit key) takes its pictures from which address. It runs again on
// every change of the page and must then do nothing: listeners are set once.
(() => {
  if (window.neighbordxThumbnails) return;
  window.neighbordxThumbnails = true;
  const side = 132;
  const gap = 18;
  let frame = null;
  let pointer = { x: 0, y: 0 };

  const hide = () => {
    if (frame) frame.hidden = true;
  };

  const makeFrame = () => {
    const image = document.createElement("img");
    image.className = "thumbnail-at-pointer";
    image.alt = "";
    image.hidden = true;
    image.addEventListener("load", () => place(image));
    image.addEventListener("error", hide);
    document.body.appendChild(image);
    return image;
  };

  // Below the pointer, where Plotly's own label (beside it) is not; above it near the lower edge.
  const place = (image) => {
    const below = pointer.y + gap + side < window.innerHeight;
    const top = below ? pointer.y + gap : pointer.y - gap - side;
    const left = Math.min(Math.max(pointer.x - side / 2, 4), window.innerWidth - side - 4);
    image.style.top = `${top}px`;
    image.style.left = `${left}px`;
    image.hidden = false;
  };

  const findAddress = (figure) => {
    for (const span of document.querySelectorAll("[data-thumbnails-of]")) {
      if (figure.closest(`.st-key-${CSS.escape(span.dataset.thumbnailsOf)}`)) {
        return span.dataset.address;
      }
    }
    return null;
  };

  const show = (event) => {
    const point = event.points.find((p) => Number.isInteger(p.customdata));
    const figure = event.event && event.event.target.closest(".js-plotly-plot");
    const address = point && figure && findAddress(figure);
    if (!address) return;
    pointer = { x: event.event.clientX, y: event.event.clientY };
    frame = frame || makeFrame();
    const wanted = new URL(address + point.customdata, document.baseURI).href;
    if (frame.src === wanted && frame.complete) {
      place(frame);
    } else {
      frame.hidden = true;
      frame.src = wanted;
    }
  };

  // A figure that is drawn anew loses its listeners: set them whenever the pointer comes over one.
  document.addEventListener("pointerover", (event) => {
    const figure = event.target.closest && event.target.closest(".js-plotly-plot");
    if (!figure || !figure.on || !findAddress(figure)) {
      hide();
      return;
    }
    figure.removeListener("plotly_hover", show);
    figure.removeListener("plotly_unhover", hide);
    figure.on("plotly_hover", show);
    figure.on("plotly_unhover", hide);
  });
  document.addEventListener("pointerdown", hide);
  document.addEventListener("wheel", hide, { passive: true });
})();
