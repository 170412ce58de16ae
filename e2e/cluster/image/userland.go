package image

import (
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// assemble gathers the files of an image.
func assemble(d Definition) (tree, error) {
	t := newTree()
	t.add("tmp", entry{mode: fs.ModeDir | fs.ModeSticky | 0o777})
	t.add("etc/passwd", entry{mode: 0o644, data: []byte("root:x:0:0:root:/:/sbin/nologin\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n")})
	t.add("etc/group", entry{mode: 0o644, data: []byte("root:x:0:\nnogroup:x:65534:\n")})
	t.add("etc/nsswitch.conf", entry{mode: 0o644, data: []byte("hosts: files dns\n")})
	for _, f := range d.Files {
		data, err := os.ReadFile(f.From)
		if err != nil {
			return nil, err
		}
		t.add(f.To, entry{mode: 0o755, data: data})
	}
	for path, target := range d.Links {
		t.add(path, entry{mode: fs.ModeSymlink | 0o777, link: target})
	}
	if len(d.Userland) == 0 {
		return t, nil
	}
	u := userland{tree: t, libraries: libraryFolders()}
	// Debian's merged /usr: programs and the dynamic linker are also asked for by their old paths.
	for _, old := range []string{"bin", "sbin", "lib", "lib64"} {
		if target, err := os.Readlink("/" + old); err == nil {
			t.add(old, entry{mode: fs.ModeSymlink | 0o777, link: target})
		}
	}
	for _, pattern := range d.Userland {
		paths, err := filepath.Glob(pattern)
		if err != nil || len(paths) == 0 {
			return nil, fmt.Errorf("%s: no such file on this machine", pattern)
		}
		for _, path := range paths {
			if err := u.add(path); err != nil {
				return nil, err
			}
		}
	}
	return t, nil
}

// userland copies files of the machine with what they need.
type userland struct {
	tree      tree
	libraries []string // folders that are searched for shared libraries
}

// add copies a file, a symbolic link and its target, or a folder with all below it.
func (u userland) add(path string) error {
	parent, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return err
	}
	path = filepath.Join(parent, filepath.Base(path)) // where it really is: /sbin/ip is /usr/sbin/ip
	if _, done := u.tree[strings.Trim(path, "/")]; done {
		return nil
	}
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	switch {
	case info.IsDir():
		entries, err := os.ReadDir(path)
		if err != nil {
			return err
		}
		u.tree.add(path, entry{mode: fs.ModeDir | 0o755})
		for _, e := range entries {
			if err := u.add(filepath.Join(path, e.Name())); err != nil {
				return err
			}
		}
		return nil
	case info.Mode()&fs.ModeSymlink != 0:
		target, err := os.Readlink(path)
		if err != nil {
			return err
		}
		u.tree.add(path, entry{mode: fs.ModeSymlink | 0o777, link: target})
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(path), target)
		}
		return u.add(target)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	u.tree.add(path, entry{mode: info.Mode().Perm(), data: data})
	return u.addNeeded(path)
}

// addNeeded copies the dynamic linker and the shared libraries of an ELF file.
func (u userland) addNeeded(path string) error {
	f, err := elf.Open(path)
	var notELF *elf.FormatError
	if errors.As(err, &notELF) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		interpreter := make([]byte, p.Filesz)
		if _, err := p.ReadAt(interpreter, 0); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if err := u.add(strings.TrimRight(string(interpreter), "\x00")); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	needed, err := f.ImportedLibraries()
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	for _, name := range needed {
		library, err := u.find(name)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if err := u.add(library); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil
}

func (u userland) find(library string) (string, error) {
	for _, dir := range u.libraries {
		if path := filepath.Join(dir, library); exists(path) {
			return path, nil
		}
	}
	return "", fmt.Errorf("shared library %s is in none of %v", library, u.libraries)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// libraryFolders are Debian's folders of shared libraries, of this machine's architecture.
func libraryFolders() []string {
	dirs, _ := filepath.Glob("/usr/lib/*-linux-gnu*") // the pattern is right
	return append(dirs, "/usr/lib64", "/usr/lib", "/usr/local/lib")
}
