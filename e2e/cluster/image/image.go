package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// nameAnnotation holds an image's whole name for containerd; the standard's own annotation holds only the tag.
const nameAnnotation = "io.containerd.image.name"

// Definition says what is in an image.
type Definition struct {
	Name       string // with registry and tag
	Files      []File
	Entrypoint []string
	Env        []string
	User       string // numeric, so that runAsNonRoot can be checked; "" is root

	// Userland are absolute paths of Debian programs, files or folders on this machine, perhaps with patterns
	// (path.Match). Programs bring the shared libraries that they need.
	Userland []string

	// Links are symbolic links: from the path to its target.
	Links map[string]string
}

// File is a program or other regular file: From on this machine, To in the image.
type File struct{ From, To string }

// Write makes the image and writes it to path as an OCI archive. The archive appears whole or not at all.
func Write(d Definition, path string) error {
	tree, err := assemble(d)
	if err != nil {
		return fmt.Errorf("assemble image %s: %w", d.Name, err)
	}
	layer, err := tree.archive()
	if err != nil {
		return fmt.Errorf("assemble image %s: %w", d.Name, err)
	}
	img, err := build(d, layer)
	if err != nil {
		return fmt.Errorf("assemble image %s: %w", d.Name, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write image %s: %w", d.Name, err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".image-")
	if err != nil {
		return fmt.Errorf("write image %s: %w", d.Name, err)
	}
	defer os.Remove(f.Name())
	err = writeArchive(f, d.Name, img, layer)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Chmod(f.Name(), 0o644)
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write image %s: %w", d.Name, err)
	}
	return nil
}

// build makes the image of one layer. The layer is not compressed: archives go no further than to the nodes.
func build(d Definition, layer []byte) (v1.Image, error) {
	img, err := mutate.Append(mutate.MediaType(mutate.ConfigMediaType(empty.Image, types.OCIConfigJSON), types.OCIManifestSchema1),
		mutate.Addendum{Layer: static.NewLayer(layer, types.OCIUncompressedLayer)})
	if err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", runtime.GOARCH // without them an import passes the image over
	config.Config = v1.Config{
		Entrypoint: d.Entrypoint,
		Env:        append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, d.Env...),
		User:       d.User,
		WorkingDir: "/",
	}
	return mutate.ConfigFile(img, config)
}

// writeArchive writes an OCI image layout (image-spec, image-layout.md) as a tar archive.
func writeArchive(w io.Writer, name string, img v1.Image, layer []byte) error {
	manifest, err := img.RawManifest()
	if err != nil {
		return err
	}
	config, err := img.RawConfigFile()
	if err != nil {
		return err
	}
	digest, err := img.Digest()
	if err != nil {
		return err
	}
	_, tag, _ := strings.Cut(name[strings.LastIndex(name, "/")+1:], ":")
	index, err := json.Marshal(v1.IndexManifest{
		SchemaVersion: 2,
		MediaType:     types.OCIImageIndex,
		Manifests: []v1.Descriptor{{
			MediaType: types.OCIManifestSchema1, Digest: digest, Size: int64(len(manifest)),
			Platform: &v1.Platform{OS: "linux", Architecture: runtime.GOARCH},
			Annotations: map[string]string{
				nameAnnotation:                      name,
				"org.opencontainers.image.ref.name": tag,
			},
		}},
	})
	if err != nil {
		return err
	}
	t := newTree()
	t.add("oci-layout", entry{mode: 0o644, data: []byte(`{"imageLayoutVersion":"1.0.0"}`)})
	t.add("index.json", entry{mode: 0o644, data: index})
	for _, blob := range [][]byte{manifest, config, layer} {
		h, _, err := v1.SHA256(bytes.NewReader(blob))
		if err != nil {
			return err
		}
		t.add("blobs/sha256/"+h.Hex, entry{mode: 0o644, data: blob})
	}
	return t.write(w)
}

// Identify returns the name and the manifest's digest of the only image in an archive that Write wrote. Any other archive is
// an error.
func Identify(path string) (name, digest string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", "", err
	}
	defer f.Close()
	tr := tar.NewReader(f)
	for {
		h, err := tr.Next()
		if err != nil {
			return "", "", fmt.Errorf("identify image %s: %w", path, err)
		}
		if h.Name != "index.json" {
			continue
		}
		var index v1.IndexManifest
		if err := json.NewDecoder(tr).Decode(&index); err != nil {
			return "", "", fmt.Errorf("identify image %s: %w", path, err)
		}
		if len(index.Manifests) != 1 || index.Manifests[0].Annotations[nameAnnotation] == "" {
			return "", "", fmt.Errorf("identify image %s: not one image with its whole name", path)
		}
		return index.Manifests[0].Annotations[nameAnnotation], index.Manifests[0].Digest.String(), nil
	}
}

// tree is the content of an archive, by slash-separated path without a leading slash.
type tree map[string]entry

type entry struct {
	mode fs.FileMode // with the bits of directory, symbolic link and sticky
	data []byte      // of a regular file
	link string      // target of a symbolic link
}

func newTree() tree { return tree{} }

// add adds an entry and the folders above it.
func (t tree) add(path string, e entry) {
	path = strings.Trim(path, "/")
	for dir := filepath.Dir(path); dir != "."; dir = filepath.Dir(dir) {
		if _, ok := t[dir]; !ok {
			t[dir] = entry{mode: fs.ModeDir | 0o755}
		}
	}
	t[path] = e
}

func (t tree) archive() ([]byte, error) {
	var b bytes.Buffer
	err := t.write(&b)
	return b.Bytes(), err
}

// write writes the entries in order of their paths, without times and owners.
func (t tree) write(w io.Writer) error {
	tw := tar.NewWriter(w)
	paths := make([]string, 0, len(t))
	for p := range t {
		paths = append(paths, p)
	}
	slices.Sort(paths)
	for _, p := range paths {
		e := t[p]
		h := &tar.Header{Name: p, Mode: int64(e.mode.Perm()), Size: int64(len(e.data)), Typeflag: tar.TypeReg}
		switch {
		case e.mode.IsDir():
			h.Name, h.Typeflag = p+"/", tar.TypeDir
		case e.mode&fs.ModeSymlink != 0:
			h.Typeflag, h.Linkname = tar.TypeSymlink, e.link
		}
		if e.mode&fs.ModeSticky != 0 {
			h.Mode |= 0o1000
		}
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		if _, err := tw.Write(e.data); err != nil {
			return err
		}
	}
	return tw.Close()
}
