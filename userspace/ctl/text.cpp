// SPDX-License-Identifier: Apache-2.0
#include "text.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <numeric>
#include <optional>

namespace reuseport::ctl {

namespace {

struct Letter {
  char32_t code = 0;
  std::size_t length = 1;
};

/// The first letter of @p text, or nothing if its bytes are not UTF-8 (RFC 3629: no overlong form,
/// no surrogate, nothing beyond U+10FFFF).
std::optional<Letter> first_letter(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) {
    return Letter{lead, 1};
  }
  const std::size_t length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
  if (lead < 0xc2 || lead > 0xf4 || text.size() < length) {
    return std::nullopt;
  }
  char32_t code = lead & (0xffU >> (length + 1));
  for (std::size_t i = 1; i < length; i++) {
    if ((byte(i) & 0xc0U) != 0x80) {
      return std::nullopt;
    }
    code = (code << 6) | (byte(i) & 0x3fU);
  }
  const char32_t least = length == 2 ? 0x80 : length == 3 ? 0x800 : 0x10000;
  if (code < least || code > 0x10ffff || (code >= 0xd800 && code <= 0xdfff)) {
    return std::nullopt;
  }
  return Letter{code, length};
}

bool acts_on_terminals(char32_t c) {
  return c < 0x20 || (c >= 0x7f && c < 0xa0) || c == 0x200e || c == 0x200f ||
         (c >= 0x2028 && c <= 0x202e) || (c >= 0x2066 && c <= 0x2069) || c == 0xfeff;
}

/// Levenshtein's distance.
std::size_t distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 1; i <= a.size(); i++) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); j++) {
      const std::size_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, replaced});
    }
  }
  return row.back();
}

}  // namespace

std::string visible(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const auto letter = first_letter(text);
    const std::size_t length = letter ? letter->length : 1;
    if (!letter || (letter->code < 0x80 && acts_on_terminals(letter->code))) {
      fmt::format_to(std::back_inserter(out), "\\x{:02x}", static_cast<unsigned char>(text[0]));
    } else if (acts_on_terminals(letter->code)) {
      fmt::format_to(std::back_inserter(out), "\\u{:04x}", static_cast<unsigned>(letter->code));
    } else {
      out += text.substr(0, length);
    }
    text.remove_prefix(length);
  }
  return out;
}

std::string nearest(std::string_view word, const std::vector<std::string>& known) {
  std::string best;
  std::size_t least = std::max<std::size_t>(word.size() * 2 / 5, 1) + 1;
  for (const std::string& k : known) {
    const std::size_t d = distance(word, k);
    if (d < least || (k.starts_with(word) && word.size() > 2 && best.empty())) {
      best = k;
      least = std::min(least, d);
    }
  }
  return best;
}

}  // namespace reuseport::ctl
