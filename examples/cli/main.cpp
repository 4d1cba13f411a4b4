// SPDX-License-Identifier: MIT
// bitladder: one checkpoint, any precision. Results go to standard output, progress and errors to
// standard error; the exit status is 0 only if the command did all that was asked.
#include <bitladder/version.hpp>

#include <CLI/CLI.hpp>
#include <cli/commands.hpp>

#include <cstdio>
#include <exception>
#include <new>
#include <string>

int main(int argc, char** argv) {
  CLI::App app{
      "Store a Llama's weights once as bitplanes, run it at any precision.\n\n"
      "  bitladder quantize MODEL -o OUT      one checkpoint for 2 to 8 bits\n"
      "  bitladder generate OUT --bits 4 --prompt \"Once upon a time\"\n"
      "  bitladder perplexity OUT --text FILE --bits 2,3,4,8\n"};
  app.set_version_flag("--version", std::to_string(BL_VERSION_MAJOR) + "." +
                                        std::to_string(BL_VERSION_MINOR) + "." +
                                        std::to_string(BL_VERSION_PATCH));
  app.require_subcommand(1);
  app.name("bitladder");
  cli::add_quantize(app);
  cli::add_sensitivity(app);
  cli::add_refit(app);
  cli::add_import(app);
  cli::add_export(app);
  cli::add_inspect(app);
  cli::add_generate(app);
  cli::add_perplexity(app);
  cli::add_demo(app);
  try {
    app.parse(argc, argv);
    return 0;
  } catch (const CLI::ParseError& e) {
    return app.exit(e);
  } catch (const std::bad_alloc&) {
    std::fputs("bitladder: out of memory\n", stderr);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "bitladder: %s\n", e.what());
  }
  return 1;
}
