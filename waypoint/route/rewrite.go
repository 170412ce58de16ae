package route

import (
	"regexp"
	"strings"
)

// rewrite changes a path. The zero value leaves it alone.
type rewrite struct {
	do      rewriting
	matched int    // with rewritePrefix: how many bytes of the path the route has matched; -1 for all
	with    string // what takes its place, or the template for regex
	regex   *regexp.Regexp
}

type rewriting uint8

const (
	rewriteNone rewriting = iota
	rewritePrefix
	rewriteRegex
	rewriteAll // of redirects: path, and query if with has one
)

// apply returns the new path of a request that matched. Its query stays.
func (r *rewrite) apply(target string) string {
	if r.do == rewriteNone {
		return target
	}
	path, query := target, ""
	if i := strings.IndexByte(target, '?'); i >= 0 {
		path, query = target[:i], target[i:]
	}
	switch r.do {
	case rewritePrefix:
		rest := ""
		if r.matched >= 0 {
			rest = path[min(r.matched, len(path)):]
		}
		return rooted(r.with + rest + query)
	case rewriteRegex:
		return rooted(r.regex.ReplaceAllString(path, r.with) + query)
	}
	if strings.IndexByte(r.with, '?') >= 0 {
		return rooted(r.with)
	}
	return rooted(r.with + query)
}

// rooted makes a path of what may not begin with a slash.
func rooted(target string) string {
	if target == "" || target[0] != '/' {
		return "/" + target
	}
	return target
}
