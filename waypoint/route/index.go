package route

import (
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

// index finds the routes whose path condition a path meets. Lists of routes are ascending: in order of precedence.
type index struct {
	exact map[string][]int32
	root  node    // of prefixes
	rest  []int32 // routes that a path does not lead to: regular expressions, and where the case does not count
}

// node is a part of a prefix tree. The way from the root to a node spells a prefix.
type node struct {
	label    string  // what this node adds to its parent's prefix
	prefix   []int32 // routes for which the prefix is enough
	segments []int32 // routes for which a segment must end here
	first    string  // the first byte of each child's label
	children []*node
}

// add adds a route at a prefix.
func (n *node) add(prefix string, segments bool, route int32) {
	if prefix == "" {
		if segments {
			n.segments = append(n.segments, route)
		} else {
			n.prefix = append(n.prefix, route)
		}
		return
	}
	i := strings.IndexByte(n.first, prefix[0])
	if i < 0 {
		child := &node{label: prefix}
		child.add("", segments, route)
		n.first += prefix[:1]
		n.children = append(n.children, child)
		return
	}
	child := n.children[i]
	same := 0
	for same < len(prefix) && same < len(child.label) && prefix[same] == child.label[same] {
		same++
	}
	if same < len(child.label) { // the ways part within the label
		rest := *child
		rest.label = child.label[same:]
		*child = node{label: child.label[:same], first: rest.label[:1], children: []*node{&rest}}
	}
	child.add(prefix[same:], segments, route)
}

func newIndex(routes []*Route) index {
	x := index{exact: map[string][]int32{}}
	for i, r := range routes {
		p := &r.match.path
		switch {
		case p.kind == pathRegex || p.fold:
			x.rest = append(x.rest, int32(i))
		case p.kind == pathExact:
			x.exact[p.value] = append(x.exact[p.value], int32(i))
		default:
			x.root.add(p.value, p.kind == pathSegments, int32(i))
		}
	}
	return x
}

// maxCandidates is how many lists of routes a look-up merges. A path that meets more prefixes than that, one within the other,
// is looked up route by route.
const maxCandidates = 16

// candidates are lists of routes, of which the least is taken again and again.
type candidates struct {
	lists [maxCandidates][]int32
	n     int
	full  bool
}

func (c *candidates) add(list []int32) {
	if len(list) == 0 {
		return
	}
	if c.n == maxCandidates {
		c.full = true
		return
	}
	c.lists[c.n] = list
	c.n++
}

// next takes the least route out; -1 if there is none left.
func (c *candidates) next() int32 {
	best := -1
	for i := range c.n {
		if best < 0 || c.lists[i][0] < c.lists[best][0] {
			best = i
		}
	}
	if best < 0 {
		return -1
	}
	route := c.lists[best][0]
	if c.lists[best] = c.lists[best][1:]; len(c.lists[best]) == 0 {
		c.n--
		c.lists[best] = c.lists[c.n]
	}
	return route
}

// match returns the first route that a request meets.
func (vh *virtualHost) match(req *message.Request, client Client) *Route {
	path, query := req.SplitPath()
	var c candidates
	c.add(vh.index.exact[path])
	c.add(vh.index.rest)
	n, left := &vh.index.root, path
	for {
		c.add(n.prefix)
		if left == "" || left[0] == '/' {
			c.add(n.segments)
		}
		if left == "" {
			break
		}
		i := strings.IndexByte(n.first, left[0])
		if i < 0 || !strings.HasPrefix(left, n.children[i].label) {
			break
		}
		n = n.children[i]
		left = left[len(n.label):]
	}
	if c.full {
		i := slices.IndexFunc(vh.routes, func(r *Route) bool {
			return r.match.path.match(path) && r.match.match(req, client, query)
		})
		if i < 0 {
			return nil
		}
		return vh.routes[i]
	}
	for i := c.next(); i >= 0; i = c.next() {
		r := vh.routes[i]
		if p := &r.match.path; (p.kind == pathRegex || p.fold) && !p.match(path) {
			continue
		}
		if r.match.match(req, client, query) {
			return r
		}
	}
	return nil
}
