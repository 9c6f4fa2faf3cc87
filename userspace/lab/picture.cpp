// SPDX-License-Identifier: Apache-2.0
#include "picture.hpp"

#include <cairo-svg.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>

#include "clock.hpp"
#include "run.hpp"

namespace lab {
namespace {

constexpr double margin = 20;
constexpr double name_width = 110;
constexpr double panel_width = 360;
constexpr double panel_gap = 70;
constexpr double row_height = 30;
constexpr double head_height = 64;
constexpr double foot_height = 44;
constexpr double bar_height = 14;

struct Colour {
  double red, green, blue;
};
constexpr Colour ink{0.13, 0.13, 0.15};
constexpr Colour faint{0.82, 0.82, 0.84};
constexpr Colour bad{0.80, 0.25, 0.20};
constexpr std::array<Colour, 4> quantile_colours{
    Colour{0.55, 0.70, 0.88}, {0.30, 0.50, 0.78}, {0.12, 0.30, 0.58}, {0.05, 0.13, 0.30}};

struct DestroySurface {
  void operator()(cairo_surface_t* surface) const { cairo_surface_destroy(surface); }
};
struct DestroyContext {
  void operator()(cairo_t* context) const { cairo_destroy(context); }
};

cairo_status_t append(void* closure, const unsigned char* data, unsigned size) {
  static_cast<std::string*>(closure)->append(reinterpret_cast<const char*>(data), size);
  return CAIRO_STATUS_SUCCESS;
}

/// A logarithmic axis of whole decades.
struct Axis {
  double left;
  double low;
  double high;

  [[nodiscard]] double at(double value) const {
    const double clamped = std::clamp(value, low, high);
    return left + panel_width * std::log10(clamped / low) / std::log10(high / low);
  }
};

class Canvas {
 public:
  explicit Canvas(cairo_t* cairo) : cairo_(cairo) {
    cairo_select_font_face(cairo_, "sans-serif", CAIRO_FONT_SLANT_NORMAL, CAIRO_FONT_WEIGHT_NORMAL);
  }
  void colour(const Colour& c) { cairo_set_source_rgb(cairo_, c.red, c.green, c.blue); }
  void text(double x, double y, const std::string& words, double size = 12) {
    cairo_set_font_size(cairo_, size);
    cairo_move_to(cairo_, x, y);
    cairo_show_text(cairo_, words.c_str());
  }
  void bar(double x, double y, double width) {
    cairo_rectangle(cairo_, x, y, width, bar_height);
    cairo_fill(cairo_);
  }
  void dot(double x, double y, double radius) {
    cairo_arc(cairo_, x, y, radius, 0, 2 * M_PI);
    cairo_fill(cairo_);
  }
  void upright(double x, double top, double bottom) {
    cairo_set_line_width(cairo_, 1);
    cairo_move_to(cairo_, x, top);
    cairo_line_to(cairo_, x, bottom);
    cairo_stroke(cairo_);
  }
  void axis(const Axis& axis, const std::string& title, double top, double bottom) {
    colour(ink);
    text(axis.left, top - 14, title, 13);
    for (double value = axis.low; value <= axis.high * 1.001; value *= 10) {
      colour(faint);
      upright(axis.at(value), top, bottom);
      colour(ink);
      text(axis.at(value) - 8, bottom + 16, fmt::format("{:g}", value), 10);
    }
  }

 private:
  cairo_t* cairo_;
};

double decade_below(double value) {
  return std::pow(10, std::floor(std::log10(value)));
}
double decade_above(double value) {
  return std::pow(10, std::ceil(std::log10(value)));
}

double to_ms(std::int64_t ns) {
  return static_cast<double>(ns) / static_cast<double>(one_ms);
}

double loss_rate(const Outcome& sum) {
  return sum.load.connections == 0 ? 0
                                   : 10'000 * static_cast<double>(sum.load.lost()) /
                                         static_cast<double>(sum.load.connections);
}

void draw_rows(Canvas& canvas, const std::vector<Outcome>& sums, const Axis& loss,
               const Axis& latency) {
  constexpr std::array quantiles{0.5, 0.99, 0.999, 1.0};
  double y = head_height;
  for (const auto& sum : sums) {
    const double middle = y + row_height / 2;
    canvas.colour(ink);
    canvas.text(margin, middle + 4, std::string{info(sum.spec.method).name});
    const auto lost = sum.load.lost();
    if (lost > 0) {
      canvas.colour(bad);
      canvas.bar(loss.left, middle - bar_height / 2, loss.at(loss_rate(sum)) - loss.left);
    }
    canvas.colour(ink);
    canvas.text((lost > 0 ? loss.at(loss_rate(sum)) : loss.left) + 5, middle + 4,
                fmt::format("{} lost", lost), 10);
    for (std::size_t i = 0; i < quantiles.size(); ++i) {
      canvas.colour(quantile_colours.at(i));
      canvas.dot(latency.at(to_ms(sum.load.connect.quantile(quantiles.at(i)))), middle, 5);
    }
    y += row_height;
  }
}

}  // namespace

Result<std::string> draw(const std::vector<Outcome>& outcomes) {
  std::vector<Outcome> sums;
  for (const auto& method : methods) {
    auto sum = total(outcomes, method.method);
    if (sum.load.connections > 0) {
      sums.push_back(std::move(sum));
    }
  }
  if (sums.empty()) {
    return error("nothing was measured, so there is nothing to draw");
  }
  double worst = 1;
  double least = 1e9;
  double most = 1;
  for (const auto& sum : sums) {
    worst = std::max(worst, loss_rate(sum));
    least = std::min(least, std::max(to_ms(sum.load.connect.quantile(0.5)), 0.001));
    most = std::max(most, to_ms(sum.load.connect.max()));
  }
  const Axis loss{margin + name_width, 0.01, std::max(decade_above(worst), 1.0)};
  const Axis latency{loss.left + panel_width + panel_gap, decade_below(least), decade_above(most)};
  const double bottom = head_height + row_height * static_cast<double>(sums.size());
  const double width = latency.left + panel_width + margin + 20;

  std::string svg;
  {
    const std::unique_ptr<cairo_surface_t, DestroySurface> surface{
        cairo_svg_surface_create_for_stream(append, &svg, width, bottom + foot_height)};
    const std::unique_ptr<cairo_t, DestroyContext> cairo{cairo_create(surface.get())};
    if (const auto status = cairo_status(cairo.get()); status != CAIRO_STATUS_SUCCESS) {
      return error(fmt::format("cairo: {}", cairo_status_to_string(status)));
    }
    cairo_set_source_rgb(cairo.get(), 1, 1, 1);
    cairo_paint(cairo.get());
    Canvas canvas{cairo.get()};
    canvas.axis(loss, "connections lost in 10,000", head_height, bottom);
    canvas.axis(latency, "connect, ms: p50, p99, p99.9, max", head_height, bottom);
    draw_rows(canvas, sums, loss, latency);
    cairo_surface_finish(surface.get());
  }
  return svg;
}

}  // namespace lab
