#include "base/html.h"

#include <gtest/gtest.h>

namespace mgm {
namespace {

TEST(Html, HostileTextIsText) {
  EXPECT_EQ(html_escape("<script>alert(\"x\" && 'y')</script>"),
            "&lt;script&gt;alert(&quot;x&quot; &amp;&amp; &#39;y&#39;)&lt;/script&gt;");
  EXPECT_EQ(html_escape(""), "");
  EXPECT_EQ(html_escape("喵 &amp;"), "喵 &amp;amp;");
}

}  // namespace
}  // namespace mgm
