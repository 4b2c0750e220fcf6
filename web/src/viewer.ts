/** Deep zoom of one picture: OpenSeadragon, and where the picture lies on the screen. */

import OpenSeadragon from "openseadragon";

import { api, tileUrl } from "./api";
import type { Tiles } from "./contract";
import type { Box, Point } from "./geometry";
import type { Placement } from "./overlay";

const SHARP_FROM = 2; // pixels of the screen for one of the picture; from here on pixels are shown as squares

function tileSource(item: number, frame: number, tiles: Tiles): OpenSeadragon.TileSourceOptions {
  return {
    width: tiles.width,
    height: tiles.height,
    tileSize: tiles.tile_size,
    tileOverlap: 0,
    minLevel: Math.min(8, tiles.levels - 1),
    maxLevel: tiles.levels - 1,
    getTileUrl: (level: number, x: number, y: number) => tileUrl(item, frame, level, x, y, tiles.version),
  } as unknown as OpenSeadragon.TileSourceOptions;
}

export class Viewer {
  readonly osd: OpenSeadragon.Viewer;
  tiles: Tiles | null = null;
  private shown: { item: number; frame: number } | null = null;
  private wanted: { item: number; frame: number } | null = null;
  private busy = false;
  private sharp = false;
  private waiting: Box | null = null;
  private colouring: OpenSeadragon.TiledImage | null = null;
  private readonly cache = new Map<number, Promise<Tiles>>();

  constructor(host: HTMLElement, onMove: (to: Placement) => void) {
    this.osd = OpenSeadragon({
      element: host,
      drawer: "canvas",
      showNavigationControl: false,
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: false, scrollToZoom: true },
      gestureSettingsPen: { clickToZoom: false, dblClickToZoom: false },
      gestureSettingsTouch: { clickToZoom: false, dblClickToZoom: true },
      animationTime: 0.25,
      springStiffness: 9,
      zoomPerScroll: 1.25,
      minZoomImageRatio: 0.7,
      maxZoomPixelRatio: 24,
      visibilityRatio: 0.3,
      imageLoaderLimit: 6,
      maxImageCacheCount: 300,
      blendTime: 0,
      alwaysBlend: false,
      immediateRender: true,
      crossOriginPolicy: false,
      loadTilesWithAjax: false,
      preserveImageSizeOnResize: false,
    } as OpenSeadragon.Options);
    this.osd.addHandler("canvas-key", (event) => ((event as { preventDefaultAction: boolean }).preventDefaultAction = true));
    const follow = () => {
      const to = this.placement();
      if (!to) return;
      const sharp = to.scale * (devicePixelRatio || 1) >= SHARP_FROM;
      if (sharp !== this.sharp) {
        this.sharp = sharp;
        (this.osd.drawer as unknown as { setImageSmoothingEnabled(on: boolean): void }).setImageSmoothingEnabled(!sharp);
        this.osd.forceRedraw();
      }
      onMove(to);
    };
    this.osd.addHandler("update-viewport", follow);
    this.osd.addHandler("open", () => {
      if (this.waiting) this.fit(this.waiting, true);
      follow();
    });
    this.osd.addHandler("resize", () => requestAnimationFrame(follow));
  }

  get item(): number | null {
    return this.shown?.item ?? null;
  }

  /** Show a picture; another frame of the same movie replaces the last one without a gap. */
  async show(item: number, frame: number): Promise<void> {
    this.wanted = { item, frame };
    if (this.busy) return;
    this.busy = true;
    try {
      while (this.wanted && (this.wanted.item !== this.shown?.item || this.wanted.frame !== this.shown?.frame)) {
        const target = this.wanted;
        await this.load(target.item, target.frame);
        this.shown = target;
      }
    } finally {
      this.busy = false;
    }
  }

  private async load(item: number, frame: number): Promise<void> {
    let asked = this.cache.get(item);
    if (!asked) this.cache.set(item, (asked = api.tiles(item)));
    const tiles = await asked.catch((error: unknown) => {
      this.cache.delete(item);
      throw error;
    });
    const source = tileSource(item, frame, tiles);
    if (this.shown?.item !== item) {
      this.tiles = tiles;
      this.colouring = null;
      this.osd.open(source as unknown as OpenSeadragon.TileSourceSpecifier);
      return;
    }
    await new Promise<void>((resolve) =>
      this.osd.addTiledImage({
        tileSource: source as unknown as OpenSeadragon.TileSource,
        index: 0,
        replace: true,
        success: () => resolve(),
        error: () => resolve(),
      }),
    );
  }

  /** Lay a coloured map over the picture, or take it away. */
  colour(url: string | null, opacity: number): void {
    if (this.colouring) this.osd.world.removeItem(this.colouring);
    this.colouring = null;
    if (!url) return;
    this.osd.addSimpleImage({
      url,
      x: 0,
      y: 0,
      width: 1,
      opacity,
      success: (event: unknown) => (this.colouring = (event as { item: OpenSeadragon.TiledImage }).item),
    } as unknown as OpenSeadragon.SimpleImageOptions);
  }

  placement(): Placement | null {
    const image = this.osd.world.getItemAt(0);
    if (!image || !this.osd.viewport) return null;
    const size = this.osd.viewport.getContainerSize();
    const from = image.imageToViewerElementCoordinates(new OpenSeadragon.Point(0, 0));
    const to = image.imageToViewerElementCoordinates(new OpenSeadragon.Point(1000, 0));
    return { scale: (to.x - from.x) / 1000, x: from.x, y: from.y, width: size.x, height: size.y };
  }

  /** From a place on the stage, in CSS pixels, to pixels of the picture (whole numbers at pixel centres). */
  toPicture(x: number, y: number): Point {
    const at = this.placement();
    return at ? { x: (x - at.x) / at.scale - 0.5, y: (y - at.y) / at.scale - 0.5 } : { x: 0, y: 0 };
  }

  zoomAt(x: number, y: number, factor: number): void {
    const point = this.osd.viewport.pointFromPixel(new OpenSeadragon.Point(x, y), true);
    this.osd.viewport.zoomBy(factor, point);
    this.osd.viewport.applyConstraints();
  }

  zoomBy(factor: number): void {
    this.osd.viewport?.zoomBy(factor);
    this.osd.viewport?.applyConstraints();
  }

  panBy(dx: number, dy: number): void {
    const { viewport } = this.osd;
    viewport?.panBy(viewport.deltaPointsFromPixels(new OpenSeadragon.Point(dx, dy), true));
    viewport?.applyConstraints();
  }

  home(): void {
    this.osd.viewport?.goHome();
  }

  actualSize(): void {
    const { viewport } = this.osd;
    viewport?.zoomTo(viewport.imageToViewportZoom(1 / (devicePixelRatio || 1)));
  }

  /** Bring a part of the picture into view, with room around it. */
  fit(box: Box, at_once = false): void {
    const image = this.osd.world.getItemAt(0);
    if (!image) {
      this.waiting = box;
      return;
    }
    this.waiting = null;
    const room = Math.max(20, 0.6 * Math.max(box.x1 - box.x0, box.y1 - box.y0));
    const rectangle = image.imageToViewportRectangle(
      box.x0 - room, box.y0 - room, box.x1 - box.x0 + 2 * room, box.y1 - box.y0 + 2 * room,
    );
    this.osd.viewport.fitBounds(rectangle, at_once);
  }

  /** Whether a part of the picture is in view and large enough to see. */
  sees(box: Box): boolean {
    const at = this.placement();
    if (!at) return false;
    const x0 = box.x0 * at.scale + at.x, x1 = box.x1 * at.scale + at.x;
    const y0 = box.y0 * at.scale + at.y, y1 = box.y1 * at.scale + at.y;
    return x0 >= 0 && y0 >= 0 && x1 <= at.width && y1 <= at.height && Math.max(x1 - x0, y1 - y0) > 12;
  }

  destroy(): void {
    this.osd.destroy();
  }
}
