package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
)

func program(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func write(t *testing.T, d Definition) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "images", "a.tar")
	if err := Write(d, path); err != nil {
		t.Fatal(err)
	}
	return path
}

// untar returns the regular files of an archive, and its headers.
func untar(t *testing.T, data []byte) (map[string][]byte, map[string]*tar.Header) {
	t.Helper()
	files, headers := map[string][]byte{}, map[string]*tar.Header{}
	for tr := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return files, headers
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[h.Name], err = io.ReadAll(tr); err != nil {
			t.Fatal(err)
		}
		headers[h.Name] = h
	}
}

func TestWrite(t *testing.T) {
	d := Definition{
		Name: "docker.io/test/a:dev", Files: []File{{From: program(t, "static"), To: "/usr/local/bin/a"}},
		Entrypoint: []string{"/usr/local/bin/a"}, User: "65532:65532", Links: map[string]string{"/usr/local/bin/b": "a"},
	}
	archive, err := os.ReadFile(write(t, d))
	if err != nil {
		t.Fatal(err)
	}
	files, _ := untar(t, archive)
	decode := func(name string, v any) {
		t.Helper()
		if err := json.Unmarshal(files[name], v); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	var index v1.IndexManifest
	decode("index.json", &index)
	var manifest v1.Manifest
	decode("blobs/sha256/"+index.Manifests[0].Digest.Hex, &manifest)
	var config v1.ConfigFile
	decode("blobs/sha256/"+manifest.Config.Digest.Hex, &config)
	if config.OS != "linux" || config.Architecture != runtime.GOARCH {
		t.Errorf("platform is %s/%s", config.OS, config.Architecture)
	}
	if config.Config.User != d.User || strings.Join(config.Config.Entrypoint, " ") != d.Entrypoint[0] {
		t.Errorf("config is %+v", config.Config)
	}
	if len(manifest.Layers) != 1 {
		t.Fatalf("%d layers", len(manifest.Layers))
	}
	layer := files["blobs/sha256/"+manifest.Layers[0].Digest.Hex]
	if int64(len(layer)) != manifest.Layers[0].Size || config.RootFS.DiffIDs[0] != manifest.Layers[0].Digest {
		t.Errorf("layer of %d bytes is described as %+v, diff ID %s", len(layer), manifest.Layers[0], config.RootFS.DiffIDs[0])
	}
	content, headers := untar(t, layer)
	if string(content["usr/local/bin/a"]) != "static" || headers["usr/local/bin/a"].Mode != 0o755 {
		t.Errorf("program is %q, mode %o", content["usr/local/bin/a"], headers["usr/local/bin/a"].Mode)
	}
	if h := headers["usr/local/bin/b"]; h == nil || h.Linkname != "a" {
		t.Errorf("link is %+v", h)
	}
	if h := headers["tmp/"]; h == nil || h.Mode != 0o1777 {
		t.Errorf("/tmp is %+v", h)
	}
}

func TestSameInputsGiveTheSameBytes(t *testing.T) {
	d := Definition{
		Name: "docker.io/test/a:dev", Files: []File{{From: program(t, "1"), To: "/a"}, {From: program(t, "2"), To: "/b"}},
		Links: map[string]string{"/x": "a", "/y": "a", "/z": "b"},
	}
	first, err := os.ReadFile(write(t, d))
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		again, err := os.ReadFile(write(t, d))
		if err != nil || !bytes.Equal(first, again) {
			t.Fatalf("another archive: %v", err)
		}
	}
}

func TestIdentify(t *testing.T) {
	path := write(t, Definition{Name: "docker.io/test/a:dev", Files: []File{{From: program(t, "1"), To: "/a"}}})
	name, digest, err := Identify(path)
	if err != nil || name != "docker.io/test/a:dev" || !strings.HasPrefix(digest, "sha256:") {
		t.Errorf("Identify = %q, %q, %v", name, digest, err)
	}
	other := write(t, Definition{Name: "docker.io/test/a:dev", Files: []File{{From: program(t, "2"), To: "/a"}}})
	if _, otherDigest, _ := Identify(other); otherDigest == digest {
		t.Error("different images have the same digest")
	}
	bad := filepath.Join(t.TempDir(), "bad.tar")
	if err := os.WriteFile(bad, []byte("no archive"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{bad, filepath.Join(t.TempDir(), "none")} {
		if _, _, err := Identify(path); err == nil {
			t.Errorf("Identify(%s) succeeded", path)
		}
	}
}

func TestMissingInputsAreErrors(t *testing.T) {
	for name, d := range map[string]Definition{
		"program":  {Files: []File{{From: "/nonexistent/program", To: "/a"}}},
		"userland": {Userland: []string{"/nonexistent/userland"}},
		"pattern":  {Userland: []string{"/nonexistent/*/x"}},
	} {
		path := filepath.Join(t.TempDir(), "a.tar")
		if err := Write(d, path); err == nil || !strings.Contains(err.Error(), "nonexistent") {
			t.Errorf("%s: error is %v, want one that names the file", name, err)
		}
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: an archive appeared", name)
		}
	}
}

// TestUserlandRuns runs a dynamically linked program with nothing but its image's files.
func TestUserlandRuns(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("skipped: needs root to change the root folder")
	}
	tree, err := assemble(Definition{Userland: []string{"/bin/ls", "/etc/alternatives/awk"}})
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	for path, e := range tree {
		at := filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		switch {
		case e.mode.IsDir():
			err = os.MkdirAll(at, 0o755)
		case e.mode&fs.ModeSymlink != 0:
			err = os.Symlink(e.link, at)
		default:
			err = os.WriteFile(at, e.data, e.mode.Perm())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{{"/bin/ls", "-d", "/tmp"}, {"/etc/alternatives/awk", `BEGIN { print "/tmp" }`}} {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root, Cloneflags: unix.CLONE_NEWNS}
		cmd.Dir = "/"
		if out, err := cmd.CombinedOutput(); err != nil || string(out) != "/tmp\n" {
			t.Errorf("%v: %q, %v", args, out, err)
		}
	}
}
