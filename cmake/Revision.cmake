# Sets BATON_REVISION_FOUND to -DBATON_REVISION=..., else to git's short hash of the checkout, else to "unknown". Read
# once, when configuring: a commit does not make the next build recompile anything.
set(BATON_REVISION "" CACHE STRING "Source revision to build in; empty: ask git")
set(BATON_REVISION_FOUND "${BATON_REVISION}")
if(NOT BATON_REVISION_FOUND)
  find_program(BATON_GIT git)
  if(BATON_GIT)
    # safe.directory: the checkout may belong to somebody else, as under sudo or in a container.
    execute_process(COMMAND ${BATON_GIT} -c safe.directory=* rev-parse --short=12 HEAD
                    WORKING_DIRECTORY ${CMAKE_SOURCE_DIR} OUTPUT_VARIABLE BATON_REVISION_FOUND
                    OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  endif()
endif()
if(NOT BATON_REVISION_FOUND)
  set(BATON_REVISION_FOUND unknown)
endif()
