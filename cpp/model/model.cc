#include "model/model.h"

#include <functional>
#include <set>
#include <utility>

#include "base/error.h"

namespace taco {

DeviceVector::DeviceVector(std::shared_ptr<Backend> backend, const std::vector<float>& values) {
  size_t bytes = values.size() * sizeof(float);
  data_ = std::static_pointer_cast<float>(device_memory(backend, bytes));
  backend->upload(data_.get(), values.data(), bytes);
}

size_t Model::weight_bytes() const {
  size_t total = 0;
  auto count = [&](const auto& w) {
    if (w) total += w->bytes();
  };
  count(tokens), count(positions), count(project_in), count(project_out), count(head);
  for (const LayerWeights& l : layers) {
    count(l.latents), count(l.q), count(l.kv);
    count(l.qkv), count(l.attn_out), count(l.ffn_in), count(l.ffn_out), count(l.router);
    for (const auto& e : l.experts_in) count(e);
    for (const auto& e : l.experts_out) count(e);
  }
  return total;
}

namespace {

// kExact: never quantised (heads, routers).
enum class LinearUse { kPlain, kGated, kExpert, kGatedExpert, kExact };

// A set of slots that are prepared together.
struct Group {
  std::vector<std::string> slots;
  std::function<void()> prepare;
  size_t given = 0;
};

std::vector<float> to_floats(const HostMatrix& m) {
  std::vector<float> out(static_cast<size_t>(m.rows * m.cols));
  if (m.data == nullptr) {  // a stand-in: small enough not to matter
    for (size_t i = 0; i < out.size(); ++i)
      out[i] = static_cast<float>((i + m.seed) * 37 % 2001) * 1e-6f - 1e-3f;
    return out;
  }
  for (int64_t r = 0; r < m.rows; ++r) dequantize_row(m, r, out.data() + r * m.cols);
  return out;
}

}  // namespace

struct ModelBuilder::Impl {
  std::shared_ptr<Model> model = std::make_shared<Model>();
  std::map<std::string, std::vector<int64_t>> slots;
  std::map<std::string, size_t> group_of;
  std::vector<Group> groups;
  std::map<std::string, HostMatrix> given;  // until their group is prepared
  std::set<std::string> done, wide;

  Backend& backend() { return *model->backend; }

  LinearOptions linear_options(LinearUse use) {
    return {.compute = model->dtype,
            .gated = use == LinearUse::kGated || use == LinearUse::kGatedExpert,
            .fp8 = model->quantize_fp8 && use != LinearUse::kExact,
            .activation = backend().activation_dtype(model->dtype),
            .offloadable = use == LinearUse::kPlain || use == LinearUse::kGated};
  }

  void group(std::vector<std::pair<std::string, std::vector<int64_t>>> members,
             std::function<void()> prepare) {
    Group g;
    for (auto& [name, shape] : members) {
      g.slots.push_back(name);
      group_of[name] = groups.size();
      slots[name] = std::move(shape);
      int64_t n = 1;
      for (int64_t d : slots[name]) n *= d;
      model->num_parameters += n;
    }
    g.prepare = std::move(prepare);
    groups.push_back(std::move(g));
  }

  void vector_slot(const std::string& name, int64_t size, DeviceVector* out) {
    group({{name, {size}}},
          [this, name, out] { *out = DeviceVector(model->backend, to_floats(given.at(name))); });
  }

  void norm_slots(const std::string& name, const NormSpec& norm, int64_t dim, NormWeights* out) {
    if (norm.kind == NormKind::kNone) return;
    if (norm.weight) vector_slot(name + ".weight", dim, &out->weight);
    if (norm.bias) vector_slot(name + ".bias", dim, &out->bias);
  }

  // Norms of heads are small: their weights are joined, and the offset is added, once and for all.
  void head_norm_slots(const std::string& name, const AttentionSpec& a, int heads, NormWeights* out) {
    if (a.qk_norm.kind == NormKind::kNone) return;
    const bool each = a.qk_norm_scope == QkNormScope::kEachHead;
    const int64_t dim = a.qk_norm_scope == QkNormScope::kAllHeads ? int64_t{heads} * a.head_dim : a.head_dim;
    auto slots_of = [&](const char* kind, float offset, DeviceVector* vector) {
      std::vector<std::pair<std::string, std::vector<int64_t>>> members;
      std::vector<std::string> names;
      for (int h = 0; h < (each ? heads : 1); ++h) {
        names.push_back(each ? str_cat(name, ".", h, ".", kind) : str_cat(name, ".", kind));
        members.push_back({names.back(), {dim}});
      }
      group(std::move(members), [this, names, offset, vector] {
        std::vector<float> all;
        for (const std::string& n : names) {
          for (float x : to_floats(given.at(n))) all.push_back(x + offset);
        }
        *vector = DeviceVector(model->backend, all);
      });
    };
    if (a.qk_norm.weight) slots_of("weight", a.qk_norm.weight_offset, &out->weight);
    if (a.qk_norm.bias) slots_of("bias", 0.0f, &out->bias);
  }

  struct Part {
    std::string name;
    int64_t rows;
  };
  // One Linear of several stacked matrices.
  void linear_slots(const std::vector<Part>& parts, int64_t cols, bool bias, std::unique_ptr<Linear>* out,
                    LinearUse use = LinearUse::kPlain) {
    std::vector<std::pair<std::string, std::vector<int64_t>>> members;
    for (const Part& p : parts) members.push_back({p.name + ".weight", {p.rows, cols}});
    if (bias) {
      for (const Part& p : parts) members.push_back({p.name + ".bias", {p.rows}});
    }
    group(std::move(members), [this, parts, bias, out, use] {
      std::vector<HostMatrix> matrices;
      std::vector<float> biases;
      for (const Part& p : parts) {
        matrices.push_back(given.at(p.name + ".weight"));
        if (bias) {
          std::vector<float> b = to_floats(given.at(p.name + ".bias"));
          biases.insert(biases.end(), b.begin(), b.end());
        }
      }
      LinearOptions options = linear_options(use);
      for (const Part& p : parts) options.fp8 = options.fp8 && !wide.contains(p.name + ".weight");
      *out = backend().prepare_linear(matrices, bias ? biases.data() : nullptr, options);
    });
  }

  void declare_embedding() {
    const ModelSpec& s = model->spec;
    Model* m = model.get();
    int64_t width = s.embed_dim ? s.embed_dim : s.hidden;
    std::vector<std::pair<std::string, std::vector<int64_t>>> members{
        {"embed.tokens", {s.vocab_size, width}}};
    if (s.tied_head && s.head_bias) members.push_back({"head.bias", {s.vocab_size}});
    group(std::move(members), [this, m] {
      const HostMatrix& table = given.at("embed.tokens");
      m->tokens = backend().prepare_embedding(table, m->dtype);
      if (!m->spec.tied_head) return;
      std::vector<float> bias;
      if (m->spec.head_bias) bias = to_floats(given.at("head.bias"));
      m->head = backend().prepare_linear({&table, 1}, bias.empty() ? nullptr : bias.data(),
                                         linear_options(LinearUse::kExact));
    });
    if (!s.tied_head) {
      linear_slots({{"head", s.vocab_size}}, width, s.head_bias, &m->head, LinearUse::kExact);
    }
    if (s.learned_positions) {
      group({{"embed.positions", {s.max_positions + s.position_offset, s.hidden}}},
            [this, m] { m->positions = backend().prepare_embedding(given.at("embed.positions"), m->dtype); });
    }
    if (s.embed_dim && s.embed_dim != s.hidden) {
      group({{"embed.project_in", {s.hidden, width}}}, [this, m] {
        m->project_in = backend().prepare_linear({&given.at("embed.project_in"), 1}, nullptr,
                                                 linear_options(LinearUse::kPlain));
      });
      group({{"embed.project_out", {width, s.hidden}}}, [this, m] {
        m->project_out = backend().prepare_linear({&given.at("embed.project_out"), 1}, nullptr,
                                                  linear_options(LinearUse::kPlain));
      });
    }
    norm_slots("embed.norm", s.embed_norm, s.hidden, &m->embed_norm);
    norm_slots("final_norm", s.final_norm, s.hidden, &m->final_norm);
  }

  void declare_layer(size_t index) {
    const ModelSpec& s = model->spec;
    const LayerSpec& layer = s.layers[index];
    LayerWeights& w = model->layers[index];
    std::string p = str_cat("layers.", index, ".");
    norm_slots(p + "attn_norm", layer.attn_norm, s.hidden, &w.attn_norm);
    norm_slots(p + "post_attn_norm", layer.post_attn_norm, s.hidden, &w.post_attn_norm);
    norm_slots(p + "ffn_norm", layer.ffn_norm, s.hidden, &w.ffn_norm);
    norm_slots(p + "post_ffn_norm", layer.post_ffn_norm, s.hidden, &w.post_ffn_norm);

    const AttentionSpec& a = layer.attn;
    int64_t q = int64_t{a.num_heads} * a.head_dim, kv = int64_t{a.num_kv_heads} * a.head_dim;
    if (a.kv_rank == 0) {
      linear_slots({{p + "attn.q", q}, {p + "attn.k", kv}, {p + "attn.v", kv}}, s.hidden, a.qkv_bias, &w.qkv);
    } else {
      std::vector<Part> latents;
      if (a.q_rank > 0) latents.push_back({p + "attn.q_a", a.q_rank});
      latents.push_back({p + "attn.kv_a", a.kv_rank + a.kv_extra});
      linear_slots(latents, s.hidden, a.latent_bias, &w.latents);
      if (a.q_rank > 0) norm_slots(p + "attn.q_a_norm", a.latent_norm, a.q_rank, &w.q_latent_norm);
      norm_slots(p + "attn.kv_a_norm", a.latent_norm, a.kv_rank, &w.kv_latent_norm);
      linear_slots({{p + "attn.q", q}}, a.q_rank > 0 ? a.q_rank : s.hidden, a.qkv_bias, &w.q);
      linear_slots({{p + "attn.k", kv}, {p + "attn.v", kv}}, a.kv_rank + a.kv_extra, a.qkv_bias, &w.kv);
    }
    linear_slots({{p + "attn.o", s.hidden}}, q, a.out_bias, &w.attn_out);
    head_norm_slots(p + "attn.q_norm", a, a.num_heads, &w.q_norm);
    head_norm_slots(p + "attn.k_norm", a, a.num_kv_heads, &w.k_norm);
    if (a.sinks) vector_slot(p + "attn.sinks", a.num_heads, &w.sinks);
    if (!a.alibi_slopes.empty()) w.alibi_slopes = DeviceVector(model->backend, a.alibi_slopes);

    const FfnSpec& f = layer.ffn;
    auto dense_slots = [&](const std::string& name, int64_t width) {
      std::vector<Part> in;
      if (f.gated) in.push_back({name + "gate", width});
      in.push_back({name + "up", width});
      linear_slots(in, s.hidden, f.bias, &w.ffn_in, f.gated ? LinearUse::kGated : LinearUse::kPlain);
      linear_slots({{name + "down", s.hidden}}, width, f.bias, &w.ffn_out);
    };
    if (f.num_experts == 0) return dense_slots(p + "ffn.", f.intermediate);
    if (f.shared_intermediate > 0) dense_slots(p + "moe.shared.", f.shared_intermediate);
    std::vector<Part> router{{p + "moe.router", f.num_experts}};
    if (f.shared_gate) router.push_back({p + "moe.shared_gate", 1});
    linear_slots(router, s.hidden, f.router_bias, &w.router, LinearUse::kExact);
    w.experts_in.resize(f.num_experts);
    w.experts_out.resize(f.num_experts);
    for (int e = 0; e < f.num_experts; ++e) {
      std::string x = str_cat(p, "moe.experts.", e, ".");
      std::vector<Part> in;
      if (f.gated) in.push_back({x + "gate", f.intermediate});
      in.push_back({x + "up", f.intermediate});
      linear_slots(in, s.hidden, f.bias, &w.experts_in[e],
                   f.gated ? LinearUse::kGatedExpert : LinearUse::kExpert);
      linear_slots({{x + "down", s.hidden}}, f.intermediate, f.bias, &w.experts_out[e], LinearUse::kExpert);
    }
  }
};

ModelBuilder::ModelBuilder(ModelSpec spec, std::shared_ptr<Backend> backend, DType dtype, bool quantize_fp8)
    : impl_(std::make_unique<Impl>()) {
  validate(spec);
  TACO_REQUIRE(dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16,
               "a model's dtype is float32, float16 or bfloat16, not ", dtype_name(dtype));
  Model& m = *impl_->model;
  m.spec = std::move(spec);
  m.backend = std::move(backend);
  m.dtype = dtype;
  m.quantize_fp8 = quantize_fp8;
  m.layers.resize(m.spec.layers.size());
  impl_->declare_embedding();
  for (size_t i = 0; i < m.layers.size(); ++i) impl_->declare_layer(i);
}

ModelBuilder::~ModelBuilder() = default;

const std::map<std::string, std::vector<int64_t>>& ModelBuilder::slots() const { return impl_->slots; }

void ModelBuilder::keep_wide(const std::string& slot) {
  if (!impl_->slots.contains(slot)) fail(ErrorCode::kNotFound, "the model has no slot '", slot, "'");
  impl_->wide.insert(slot);
}

void ModelBuilder::add(const std::string& slot, HostMatrix tensor, const std::vector<int64_t>& shape) {
  auto found = impl_->slots.find(slot);
  if (found == impl_->slots.end()) fail(ErrorCode::kNotFound, "the model has no slot '", slot, "'");
  auto show = [](const std::vector<int64_t>& s) {
    std::string out = "[";
    for (size_t i = 0; i < s.size(); ++i) out += (i ? ", " : "") + std::to_string(s[i]);
    return out + "]";
  };
  TACO_REQUIRE(shape == found->second, "slot '", slot, "' has shape ", show(found->second),
               ", the checkpoint gives ", show(shape));
  TACO_REQUIRE(!impl_->given.count(slot) && !impl_->done.count(slot), "slot '", slot, "' is given twice");
  impl_->given[slot] = std::move(tensor);
  Group& group = impl_->groups[impl_->group_of.at(slot)];
  if (++group.given < group.slots.size()) return;
  group.prepare();
  for (const std::string& name : group.slots) {
    impl_->given.erase(name);
    impl_->done.insert(name);
  }
}

std::vector<std::string> ModelBuilder::missing() const {
  std::vector<std::string> out;
  for (const auto& [name, shape] : impl_->slots) {
    if (!impl_->given.count(name) && !impl_->done.count(name)) out.push_back(name);
  }
  return out;
}

std::shared_ptr<const Model> ModelBuilder::finish() {
  TACO_REQUIRE(impl_->model, "finish was called already");
  std::vector<std::string> names = missing();
  if (!names.empty()) {
    std::string list;
    for (size_t i = 0; i < names.size() && i < 8; ++i) list += (i ? ", " : "") + names[i];
    fail(ErrorCode::kInvalidArgument, "the checkpoint lacks ", names.size(), " tensor(s): ", list,
         names.size() > 8 ? ", ..." : "");
  }
  return std::exchange(impl_->model, nullptr);
}

}  // namespace taco
