# To be sourced: finds cmake and ctest, or installs them into build/native-tools.
if ! command -v cmake > /dev/null || ! command -v ctest > /dev/null; then
  python3 -m venv build/native-tools
  build/native-tools/bin/python -m pip install --quiet --disable-pip-version-check cmake
  PATH="$PWD/build/native-tools/bin:$PATH"
fi
