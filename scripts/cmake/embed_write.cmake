# Called as a script: -DOUT=<cpp> -DROOT=<folder names are relative to> -DFILES=<list>
set(body "#include \"base/embedded.h\"\n\nnamespace mgm {\n\nconst std::vector<EmbeddedFile>& embedded_files() {\n  static const std::vector<EmbeddedFile> files = {\n")
foreach(f ${FILES})
  file(RELATIVE_PATH name ${ROOT} ${f})
  file(READ ${f} text)
  string(APPEND body "      {\"${name}\", R\"__EMBED__(${text})__EMBED__\"},\n")
endforeach()
string(APPEND body "  };\n  return files;\n}\n\n}  // namespace mgm\n")
file(WRITE ${OUT} "${body}")
