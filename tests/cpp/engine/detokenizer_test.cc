// Tokens to text: every cut of the same bytes gives the same text, and stop strings are found as in the
// whole.
#include "engine/detokenizer.h"

#include <gtest/gtest.h>

#include <random>

#include "engine/json_escape.h"
#include "engine/utf8.h"

namespace taco {
namespace {

const std::string kReplacement = "\xEF\xBF\xBD";

std::string whole(std::string_view bytes) {
  std::string text;
  EXPECT_EQ(append_utf8(bytes, true, text), bytes.size());
  return text;
}

std::string encode(uint32_t c) {
  std::string s;
  if (c < 0x80) {
    s = {static_cast<char>(c)};
  } else if (c < 0x800) {
    s = {static_cast<char>(0xC0 | c >> 6), static_cast<char>(0x80 | (c & 63))};
  } else if (c < 0x10000) {
    s = {static_cast<char>(0xE0 | c >> 12), static_cast<char>(0x80 | (c >> 6 & 63)),
         static_cast<char>(0x80 | (c & 63))};
  } else {
    s = {static_cast<char>(0xF0 | c >> 18), static_cast<char>(0x80 | (c >> 12 & 63)),
         static_cast<char>(0x80 | (c >> 6 & 63)), static_cast<char>(0x80 | (c & 63))};
  }
  return s;
}

TEST(Utf8, EveryCodePointIsWellFormed) {
  for (uint32_t c = 0; c < 0x110000; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    std::string s = encode(c), text;
    ASSERT_EQ(append_utf8(s, false, text), s.size()) << c;
    ASSERT_EQ(text, s) << c;
    for (size_t cut = 1; cut < s.size(); ++cut) {  // a proper prefix waits, or is one replacement at the end
      text.clear();
      ASSERT_EQ(append_utf8(std::string_view(s).substr(0, cut), false, text), 0u) << c;
      ASSERT_EQ(text, "");
      ASSERT_EQ(whole(std::string_view(s).substr(0, cut)), kReplacement) << c;
    }
  }
}

TEST(Utf8,
     IllFormedSubparts) {  // the examples of the Unicode standard, tables 3-8 to 3-11; as Python decodes them
  auto r = [](int n) {
    std::string s;
    for (int i = 0; i < n; ++i) s += kReplacement;
    return s;
  };
  EXPECT_EQ(whole("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41"), r(8) + "A");
  EXPECT_EQ(whole("\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41"), r(8) + "A");
  EXPECT_EQ(whole("\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42"), r(5) + "A" + r(2) + "B");
  EXPECT_EQ(whole("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41"), r(4) + "A");
  EXPECT_EQ(whole("\xF0\x80\x80"), r(3));
  EXPECT_EQ(whole("a\x80"
                  "b"),
            "a" + kReplacement + "b");
}

struct Outcome {
  std::string text;
  std::optional<std::string> stop;
};

// Feeds `bytes`, cut at random, and checks after each token that the text is a prefix of the end result.
Outcome feed(const std::string& bytes, const SamplingParams& params, std::mt19937& rng,
             size_t active_from = 0) {
  std::vector<std::string> pieces;
  for (size_t i = 0; i < bytes.size();) {
    size_t n = std::min<size_t>(rng() % 5, bytes.size() - i);  // empty pieces too
    pieces.push_back(bytes.substr(i, n));
    i += n;
  }
  auto vocabulary = std::make_shared<Vocabulary>(pieces, std::vector<int32_t>{}, false);
  Detokenizer d(vocabulary, std::make_shared<SamplingParams>(params));
  Outcome run;
  size_t fed = 0;
  for (size_t i = 0; i < pieces.size() && !run.stop; ++i) {
    fed += pieces[i].size();
    std::string before = run.text;
    run.stop = d.add(static_cast<int32_t>(i), fed > active_from, run.text);
    EXPECT_EQ(run.text.compare(0, before.size(), before), 0);
    EXPECT_EQ(whole(run.text), run.text) << "not whole code points";
  }
  if (!run.stop) d.finish(run.text);
  return run;
}

// The stop string that ends first, the longest of those.
Outcome naive(const std::string& bytes, const SamplingParams& params) {
  for (size_t end = 1; end <= bytes.size(); ++end) {
    const std::string* found = nullptr;
    for (const std::string& stop : params.stop)
      if (stop.size() <= end && bytes.compare(end - stop.size(), stop.size(), stop) == 0 &&
          (!found || stop.size() > found->size()))
        found = &stop;
    if (found)
      return {whole(std::string_view(bytes).substr(
                  0, end - (params.include_stop_str_in_output ? 0 : found->size()))),
              *found};
  }
  return {whole(bytes), std::nullopt};
}

TEST(DetokenizerTest, AnyCutGivesTheSameText) {
  std::mt19937 rng(1);
  const std::vector<std::string> parts = {"a",    "\xC3\xA9", "\xE4\xB8\xAD", "\xF0\x9F\x98\x80",
                                          "\x80", "\xE2\x82", "\xF0\x9F",     "\xFF",
                                          "\xC0", " "};
  for (int round = 0; round < 3000; ++round) {
    std::string bytes;
    for (size_t i = rng() % 12; i > 0; --i) bytes += parts[rng() % parts.size()];
    EXPECT_EQ(feed(bytes, {}, rng).text, whole(bytes));
  }
}

TEST(DetokenizerTest, StopStringsAsInTheWhole) {
  std::mt19937 rng(2);
  int stopped = 0;
  for (int round = 0; round < 5000; ++round) {
    std::string bytes;  // few letters, so that prefixes overlap
    for (size_t i = rng() % 30; i > 0; --i) bytes += rng() % 6 ? std::string(1, "ab"[rng() % 2]) : "\xC3\xA9";
    SamplingParams p;
    p.include_stop_str_in_output = rng() % 2;
    for (size_t i = 1 + rng() % 3; i > 0; --i) {
      std::string stop;
      for (size_t j = 1 + rng() % 5; j > 0; --j)
        stop += rng() % 6 ? std::string(1, "ab"[rng() % 2]) : "\xC3\xA9";
      p.stop.push_back(stop);
    }
    Outcome expected = naive(bytes, p), got = feed(bytes, p, rng);
    EXPECT_EQ(got.text, expected.text);
    EXPECT_EQ(got.stop, expected.stop);
    stopped += got.stop.has_value();
  }
  EXPECT_GT(stopped, 1000);
}

Detokenizer make(std::vector<std::string> pieces, SamplingParams p, std::vector<int32_t> special = {},
                 bool strip = false, bool at_start = false) {
  return Detokenizer(std::make_shared<Vocabulary>(std::move(pieces), special, strip),
                     std::make_shared<SamplingParams>(std::move(p)), at_start);
}

TEST(DetokenizerTest, HoldsBackARealPrefixOnly) {
  SamplingParams p;
  p.stop = {"<end>", "\n\n"};
  Detokenizer d = make({"hello <", "en", "c", " <end", "\n", "x"}, p);
  std::string text;
  auto add = [&](int32_t token) {
    text.clear();
    EXPECT_EQ(d.add(token, true, text), std::nullopt);
    return text;
  };
  EXPECT_EQ(add(0), "hello ");
  EXPECT_EQ(add(1), "");
  EXPECT_EQ(add(2), "<enc");
  EXPECT_EQ(add(3), " ");
  EXPECT_EQ(add(4), "<end");
  EXPECT_EQ(add(5), "\nx");
  EXPECT_EQ(add(3), " ");
  text.clear();
  d.finish(text);
  EXPECT_EQ(text, "<end");
}

TEST(DetokenizerTest, StopsAreNotLookedForUntilActive) {
  SamplingParams p;
  p.stop = {"ab"};
  Detokenizer d = make({"ab", "a", "b"}, p);
  std::string text;
  EXPECT_EQ(d.add(0, false, text), std::nullopt);
  EXPECT_EQ(text, "ab");
  EXPECT_EQ(d.add(1, false, text), std::nullopt);
  EXPECT_EQ(text, "ab");
  EXPECT_EQ(d.add(2, true, text), "ab");
  EXPECT_EQ(text, "ab");
}

TEST(DetokenizerTest, SpecialTokensAndTheLeadingSpace) {
  SamplingParams skip, keep;
  keep.skip_special_tokens = false;
  std::string text;
  Detokenizer a = make({" hi", "</s>", " you"}, skip, {1});
  for (int32_t id : {0, 1, 2, 7, -1}) a.add(id, true, text);  // ids out of range have no text
  EXPECT_EQ(text, " hi you");
  text.clear();
  Detokenizer b = make({" hi", "</s>", " you"}, keep, {1});
  for (int32_t id : {0, 1, 2}) b.add(id, true, text);
  EXPECT_EQ(text, " hi</s> you");
  text.clear();
  Detokenizer c = make({" hi", "</s>", " you"}, skip, {1}, true, true);
  for (int32_t id : {1, 0, 2}) c.add(id, true, text);
  EXPECT_EQ(text, "hi you");
  text.clear();
  Detokenizer after_prompt = make({" hi"}, skip, {}, true);
  after_prompt.add(0, true, text);
  EXPECT_EQ(text, " hi");
}

TEST(JsonEscape, EscapesWhatJsonDemands) {
  EXPECT_EQ(json_escape("a\"b\\c\n\r\t\b\f\x01\x1f\x7f \xE4\xB8\xAD/"),
            "a\\\"b\\\\c\\n\\r\\t\\b\\f\\u0001\\u001f\x7f \xE4\xB8\xAD/");
  EXPECT_EQ(json_escape(""), "");
  EXPECT_EQ(json_escape(std::string_view("\0x", 2)), "\\u0000x");
}

}  // namespace
}  // namespace taco
