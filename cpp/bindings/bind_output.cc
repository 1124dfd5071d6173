// SamplingParams in, Output and EngineStats out.
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "base/error.h"
#include "bindings/bindings.h"
#include "engine/engine.h"
#include "engine/json_escape.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace taco::bindings {
namespace {

// (prompt ids, output ids, logits) -> None (changed in place) or a new array.
void set_logits_processor(SamplingParams& params, nb::object callable) {
  if (callable.is_none()) {
    params.logits_processor = nullptr;
    return;
  }
  params.logits_processor = [fn = keep(std::move(callable))](std::span<const int32_t> prompt,
                                                             std::span<const int32_t> output,
                                                             std::span<float> logits) {
    nb::gil_scoped_acquire gil;
    try {
      auto ids = [](std::span<const int32_t> v) {
        return nb::cast(std::vector<int32_t>(v.begin(), v.end()));
      };
      nb::ndarray<nb::numpy, float> row(logits.data(), {logits.size()}, nb::handle());
      nb::object array = nb::cast(row, nb::rv_policy::reference);
      nb::object result = (*fn)(ids(prompt), ids(output), array);
      if (result.is_none() || result.is(array)) return;
      auto given = nb::cast<nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>>(result);
      TACO_REQUIRE(given.size() == logits.size(), "a logits processor returned ", given.size(),
                   " values, not ", logits.size());
      std::copy_n(given.data(), given.size(), logits.data());
    } catch (nb::python_error& e) {
      std::string message = e.what();
      throw Error(ErrorCode::kInvalidArgument, "a logits processor failed: " + message);
    } catch (const nb::cast_error&) {
      throw Error(ErrorCode::kInvalidArgument,
                  "a logits processor must return None or a float32 array of the vocabulary's size");
    }
  };
}

nb::object finish_reason(FinishReason reason) {
  switch (reason) {
    case FinishReason::kNone:
      return nb::none();
    case FinishReason::kStop:
      return nb::str("stop");
    case FinishReason::kLength:
      return nb::str("length");
    case FinishReason::kAbort:
      return nb::str("abort");
    case FinishReason::kError:
      return nb::str("error");
  }
  return nb::none();
}

}  // namespace

void bind_output(nb::module_& m) {
  using P = SamplingParams;
  nb::class_<P>(m, "SamplingParams", "Plain fields; taco_llm.SamplingParams is the one for people.")
      .def("__init__",
           [](nb::pointer_and_handle<P> self, const nb::kwargs& fields) {
             new (self.p) P();
             set_fields(self.h, fields);
           })
      .def_rw("n", &P::n)
      .def_rw("best_of", &P::best_of)
      .def_rw("presence_penalty", &P::presence_penalty)
      .def_rw("frequency_penalty", &P::frequency_penalty)
      .def_rw("repetition_penalty", &P::repetition_penalty)
      .def_rw("temperature", &P::temperature)
      .def_rw("top_p", &P::top_p)
      .def_rw("top_k", &P::top_k)
      .def_rw("min_p", &P::min_p)
      .def_rw("seed", &P::seed, nb::arg().none())
      .def_rw("stop", &P::stop)
      .def_rw("stop_token_ids", &P::stop_token_ids)
      .def_rw("eos_token_ids", &P::eos_token_ids)
      .def_rw("ignore_eos", &P::ignore_eos)
      .def_rw("max_tokens", &P::max_tokens)
      .def_rw("min_tokens", &P::min_tokens)
      .def_rw("logprobs", &P::logprobs)
      .def_rw("prompt_logprobs", &P::prompt_logprobs)
      .def_rw("detokenize", &P::detokenize)
      .def_rw("skip_special_tokens", &P::skip_special_tokens)
      .def_rw("spaces_between_special_tokens", &P::spaces_between_special_tokens)
      .def_rw("include_stop_str_in_output", &P::include_stop_str_in_output)
      .def_rw("no_repeat_ngram_size", &P::no_repeat_ngram_size)
      .def_rw("logit_bias", &P::logit_bias)
      .def_rw("bad_words", &P::bad_words)
      .def_rw("allowed_token_ids", &P::allowed_token_ids)
      .def_prop_rw(
          "logits_processor", [](const P& self) { return static_cast<bool>(self.logits_processor); },
          &set_logits_processor, nb::for_setter(nb::arg().none()),
          "True if there is one; set to (prompt, output, logits) -> None or a new array");

  nb::class_<TokenLogprob>(m, "TokenLogprob")
      .def_ro("token", &TokenLogprob::token)
      .def_ro("logprob", &TokenLogprob::logprob)
      .def_ro("rank", &TokenLogprob::rank)
      .def("__repr__", [](const TokenLogprob& t) {
        return str_cat("TokenLogprob(token=", t.token, ", logprob=", t.logprob, ", rank=", t.rank, ")");
      });

  nb::class_<Output>(m, "Output", "What happened to one sequence since its last Output.")
      .def_ro("request", &Output::request)
      .def_ro("index", &Output::index)
      .def_ro("text", &Output::text)
      .def_prop_ro("text_json",
                   [](const Output& o) {
                     std::string escaped = json_escape(o.text);
                     return nb::bytes(escaped.data(), escaped.size());
                   })
      .def_ro("token_ids", &Output::token_ids)
      .def_ro("logprobs", &Output::logprobs)
      .def_ro("prompt_logprobs", &Output::prompt_logprobs)
      .def_prop_ro("finish_reason", [](const Output& o) { return finish_reason(o.finish_reason); })
      .def_prop_ro("stop_reason",
                   [](const Output& o) -> nb::object {
                     if (auto* id = std::get_if<int32_t>(&o.stop_reason)) return nb::int_(*id);
                     if (auto* text = std::get_if<std::string>(&o.stop_reason))
                       return nb::str(text->c_str(), text->size());
                     return nb::none();
                   })
      .def_ro("error", &Output::error)
      .def_ro("cumulative_logprob", &Output::cumulative_logprob)
      .def_ro("request_finished", &Output::request_finished)
      .def_ro("num_prompt_tokens", &Output::num_prompt_tokens)
      .def_ro("num_output_tokens", &Output::num_output_tokens)
      .def_ro("num_cached_tokens", &Output::num_cached_tokens)
      .def_ro("speculation", &Output::speculation)
      .def_prop_ro("times", [](const Output& o) {
        const RequestTimes& t = o.times;
        return nb::make_tuple(t.arrival, t.first_scheduled, t.first_token, t.last_token, t.finished);
      });

  using S = EngineStats;
  nb::class_<S>(m, "EngineStats")
      .def_ro("running", &S::running)
      .def_ro("waiting", &S::waiting)
      .def_ro("num_blocks", &S::num_blocks)
      .def_ro("free_blocks", &S::free_blocks)
      .def_ro("swap_blocks", &S::swap_blocks)
      .def_ro("free_swap_blocks", &S::free_swap_blocks)
      .def_ro("steps", &S::steps)
      .def_ro("preemptions", &S::preemptions)
      .def_ro("prompt_tokens", &S::prompt_tokens)
      .def_ro("prompt_tokens_computed", &S::prompt_tokens_computed)
      .def_ro("generation_tokens", &S::generation_tokens)
      .def_ro("finished_stop", &S::finished_stop)
      .def_ro("finished_length", &S::finished_length)
      .def_ro("finished_abort", &S::finished_abort)
      .def_ro("finished_error", &S::finished_error)
      .def_ro("last_step_end", &S::last_step_end)
      .def_ro("current_step_start", &S::current_step_start)
      .def_ro("dead", &S::dead)
      .def_ro("death_reason", &S::death_reason)
      .def_ro("speculation", &S::speculation)
      .def_ro("prefix_cache", &S::prefix_cache);
}

}  // namespace taco::bindings
