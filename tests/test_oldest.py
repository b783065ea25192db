from oldest import oldest

CORE = """
[project]
dependencies = ["torch>=2.6", "numpy>=1.26", "typing-extensions"]
[project.optional-dependencies]
dev = ["pytest[toml]>=8.3"]
"""
PLUGIN = """
[project]
dependencies = ["mimkit>=0.1", "numpy>=2", "DALL-E==0.1", "Torch>=2.6,<3"]
"""


def test_the_oldest_versions_that_all_projects_promise_together(tmp_path):
    files = [tmp_path / "core.toml", tmp_path / "plugin.toml"]
    for file, text in zip(files, (CORE, PLUGIN), strict=True):
        file.write_text(text)
    expected = ["dall-e==0.1", "numpy==2", "pytest==8.3", "torch==2.6"]
    assert oldest(files) == oldest(files[::-1]) == expected
