// The shared cache over a restart, and files that are not to be trusted.
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <thread>
#include <vector>

#include "spec/lookahead/lookahead_drafter.h"

namespace taco {
namespace {

using Tokens = std::vector<int32_t>;
constexpr size_t kMemory = size_t{16} << 20;
const char* const kModel = "tiny-model 1000 tokens";

LookaheadConfig settings(int mode) {
  LookaheadConfig config;
  config.cache_mode = mode;
  config.voc_size = 1000;
  config.eos_token_id = {2};
  return config;
}

class LookaheadSave : public testing::TestWithParam<int> {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::path(testing::TempDir()) /
              ("lookahead_save_" + std::to_string(GetParam()) + "_" + std::to_string(::getpid()));
    std::filesystem::create_directories(folder_);
    path_ = (folder_ / "cache.bin").string();
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  // Texts in which everything follows from two tokens, so that drafts have one right answer.
  static Tokens text(int seed, int length) {
    Tokens out{10 + seed % 900, 20 + seed % 500};
    while (static_cast<int>(out.size()) < length)
      out.push_back(3 + (out[out.size() - 2] * 7 + out.back() * 13 + seed) % 990);
    return out;
  }
  void teach(LookaheadDrafter& drafter, int texts) {
    for (int i = 0; i < texts; ++i) {
      drafter.begin(next_, 1, text(i, 60));
      drafter.end(next_++);
    }
    drafter.catch_up(0);
  }
  Tokens draft(LookaheadDrafter& drafter, const Tokens& prompt) {
    drafter.begin(next_, 1, prompt);
    DraftTree tree;
    tree.reset(prompt.back());
    const DraftRequest request{next_, 7, 63, 0.0f, &tree};
    drafter.draft({&request, 1});
    drafter.end(next_++);
    drafter.catch_up(0);
    Tokens out(tree.token, tree.token + tree.size);
    return out;
  }
  std::string contents() {
    std::ifstream file(path_, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  void overwrite(const std::string& bytes) {
    std::ofstream(path_, std::ios::binary | std::ios::trunc)
        .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }
  void expect_refused(const std::string& what, const std::string& fingerprint = kModel) {
    LookaheadDrafter drafter(settings(GetParam()), kMemory, fingerprint);
    try {
      drafter.load(path_);
      ADD_FAILURE() << "taken: " << what;
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::kInvalidArgument) << e.what();
      EXPECT_NE(std::string(e.what()).find(what), std::string::npos) << e.what();
    }
    EXPECT_EQ(drafter.stats().global_keys, 0) << "it starts empty";
    teach(drafter, 3);  // and works
    EXPECT_GT(drafter.stats().global_keys, 0);
  }

  std::filesystem::path folder_;
  std::string path_;
  uint64_t next_ = 1;
};

TEST_P(LookaheadSave, DraftsTheSameAfterARestart) {
  LookaheadDrafter drafter(settings(GetParam()), kMemory, kModel);
  teach(drafter, 300);
  const uint64_t bytes = drafter.save(path_);
  EXPECT_EQ(bytes, std::filesystem::file_size(path_));
  LookaheadDrafter again(settings(GetParam()), kMemory, kModel);
  const auto keys = static_cast<int64_t>(again.load(path_));
  EXPECT_GT(keys, 1000);
  EXPECT_GT(keys, drafter.stats().global_keys * 97 / 100);
  int same = 0, drafts = 0;
  for (int i = 0; i < 300; ++i) {
    const Tokens whole = text(i, 60);
    const Tokens prompt{whole[30], whole[31]};
    const Tokens before = draft(drafter, prompt), after = draft(again, prompt);
    drafts += before.size() > 1;
    same += before == after;
  }
  EXPECT_GT(drafts, 290);
  EXPECT_GT(same, 285);  // single keys may have met a full bucket
  // Nothing else is left in the folder.
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder_), {}), 1);
  // A second save replaces the first.
  teach(again, 10);
  again.save(path_);
  LookaheadDrafter third(settings(GetParam()), kMemory, kModel);
  EXPECT_GT(third.load(path_), 1000u);
}

TEST_P(LookaheadSave, SavesWhileItServes) {
  LookaheadDrafter drafter(settings(GetParam()), kMemory, kModel);
  teach(drafter, 300);
  const int64_t keys = drafter.stats().global_keys;
  std::atomic<bool> done{false};
  std::thread saver([&] {
    EXPECT_GT(drafter.save(path_), 10000u);
    done = true;
  });
  for (int i = 0; !done; ++i) {
    drafter.begin(next_, 1, text(1000 + i % 50, 40));
    drafter.end(next_++);
    drafter.catch_up(20);
  }
  saver.join();
  LookaheadDrafter again(settings(GetParam()), kMemory, kModel);
  EXPECT_GT(static_cast<int64_t>(again.load(path_)), keys * 90 / 100);
  const Tokens whole = text(5, 60);
  EXPECT_GT(draft(again, {whole[30], whole[31]}).size(), 1u);
}

TEST_P(LookaheadSave, RefusesEveryDamage) {
  LookaheadDrafter drafter(settings(GetParam()), kMemory, kModel);
  teach(drafter, 20);
  drafter.save(path_);
  const std::string whole = contents();
  ASSERT_GT(whole.size(), 10000u);
  expect_refused("another model", "other-model");
  overwrite("");
  expect_refused("ends too early");
  overwrite("not a cache at all, but long enough to be taken for one");
  expect_refused("not a saved lookahead cache");
  // Cut anywhere.
  std::mt19937 random(1);
  for (int i = 0; i < 60; ++i) {
    overwrite(whole.substr(0, random() % whole.size()));
    expect_refused("refused");
  }
  overwrite(whole.substr(0, whole.size() - 1));
  expect_refused("ends too early");
  overwrite(whole + "x");
  expect_refused("something follows");
  // Any bit.
  for (int i = 0; i < 300; ++i) {
    std::string damaged = whole;
    const size_t at = i < 90 ? static_cast<size_t>(i) : random() % whole.size();
    damaged[at] = static_cast<char>(damaged[at] ^ (1 << random() % 8));
    overwrite(damaged);
    expect_refused("refused");
  }
  overwrite(whole);
  LookaheadDrafter again(settings(GetParam()), kMemory, kModel);
  EXPECT_GT(again.load(path_), 0u);
  EXPECT_THROW(again.load(path_), Error) << "into an empty cache only";
}

TEST_P(LookaheadSave, AForgedFileIsHeldToTheRules) {
  // Well formed and with right checksums, but ids outside the vocabulary and cells of no or too many entries.
  const CacheFileHeader header{GetParam() != 0, 7, 1000, kModel};
  auto forge = [&](CacheBlock type, const std::vector<uint8_t>& payload) {
    CacheFileWriter writer(path_, header);
    writer.put(type, payload);
    writer.close();
    writer.wait();
    ASSERT_EQ(writer.error(), "");
  };
  auto bytes = [](std::initializer_list<uint64_t> words) {
    std::vector<uint8_t> out(words.size() * 8);
    std::memcpy(out.data(), words.begin(), out.size());
    return out;
  };
  if (GetParam() != 0) {
    forge(CacheBlock::kKeys, bytes({uint64_t{1} << 56 | 5, 16ull << 32 | 1000}));
    expect_refused("the token 1000");
  } else {
    std::vector<int32_t> phrase{1, 2, 3, 4, 5, 6, 5000};
    forge(CacheBlock::kPhrases, std::vector<uint8_t>(reinterpret_cast<uint8_t*>(phrase.data()),
                                                     reinterpret_cast<uint8_t*>(phrase.data() + 7)));
    expect_refused("the token 5000");
    forge(CacheBlock::kPhrases, {1, 2, 3});
    expect_refused("phrases are damaged");
  }
  for (uint64_t head :
       {uint64_t{5}, uint64_t{65} << 56 | 5, uint64_t{2} << 56 | 5, uint64_t{1} << 56 | uint64_t{1} << 50}) {
    forge(CacheBlock::kKeys, bytes({head, 16ull << 32 | 7}));
    expect_refused("keys are damaged");
  }
  forge(CacheBlock::kKeys, {1, 2, 3});
  expect_refused("keys are damaged");
  forge(CacheBlock::kRates, bytes({1, 2}));
  expect_refused("rates are damaged");
  forge(static_cast<CacheBlock>(9), {});
  expect_refused("unknown type");
}

TEST_P(LookaheadSave, SaysWhatIsWrongWithThePath) {
  LookaheadDrafter drafter(settings(GetParam()), kMemory, kModel);
  try {
    drafter.load(path_);
    ADD_FAILURE();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::kNotFound);
  }
  teach(drafter, 3);
  try {
    drafter.save((folder_ / "missing" / "cache.bin").string());
    ADD_FAILURE();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::kUnavailable);
    EXPECT_NE(std::string(e.what()).find("No such file"), std::string::npos) << e.what();
  }
  LookaheadConfig config = settings(GetParam());
  config.global_cache_switch = false;
  LookaheadDrafter alone(config, kMemory);
  EXPECT_EQ(alone.save(path_), 0u);
  EXPECT_EQ(alone.load(path_), 0u);
  EXPECT_FALSE(std::filesystem::exists(path_));
}

TEST_P(LookaheadSave, AnAbandonedSaveLeavesTheOldFile) {
  {
    LookaheadDrafter drafter(settings(GetParam()), kMemory, kModel);
    teach(drafter, 20);
    drafter.save(path_);
  }
  const std::string before = contents();
  {
    CacheFileWriter writer(path_, {true, 7, 1000, kModel});
    writer.put(CacheBlock::kKeys, std::vector<uint8_t>(1000));
  }
  EXPECT_EQ(contents(), before);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder_), {}), 1)
      << "no temporary file is left";
}

TEST(LookaheadSaveSettings, AnotherModesFileIsRefused) {
  const std::string path =
      (std::filesystem::path(testing::TempDir()) / ("lookahead_modes_" + std::to_string(::getpid())))
          .string();
  LookaheadDrafter turbo(settings(2), kMemory), raw(settings(0), kMemory), single(settings(1), kMemory);
  turbo.warm_up(1, Tokens{10, 11, 12}, Tokens{13, 14, 15, 16});
  turbo.save(path);
  EXPECT_THROW(raw.load(path), Error);
  EXPECT_GT(single.load(path), 0u);  // the hybrid's is Turbo's, with short contexts besides
  std::filesystem::remove(path);
}

INSTANTIATE_TEST_SUITE_P(Modes, LookaheadSave, testing::Values(0, 2));

}  // namespace
}  // namespace taco
