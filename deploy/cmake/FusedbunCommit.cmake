# Run by each build: writes OUT, the definition of commit_of_build() (launcher/env/versions.cpp), with the commit that ROOT is at, "" outside
# a git checkout. A file that says so already is left alone.
execute_process(COMMAND git -C ${ROOT} rev-parse --short HEAD
                OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
file(CONFIGURE OUTPUT ${OUT} CONTENT
  "#include <string_view>\n\nnamespace fusedbun::launcher {\nstd::string_view commit_of_build() { return \"${commit}\"; }\n}\n")
